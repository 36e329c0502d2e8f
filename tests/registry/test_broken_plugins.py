"""Test plugins that are broken in many ways: each is one line for the user, and everything else works."""

import itertools
import sys
import threading
import warnings

import pytest
from fake_plugins import GOOD, fake_entry_point, hosted, install, with_plugin

import mmzoo
from mmzoo.errors import PluginBroken, PluginWarning, SettingsError, TrainingError, UnknownName
from mmzoo.registry import manager, settings
from mmzoo.registry.manager import PluginManager

HOOK = "import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_encoders():\n    "
ENTRY = 'mmzoo.Entry("encoder", "odd", target="a.b:C", summary="odd"{})'
HANG = "import time; time.sleep(5)\n"
TASK = "class _Evil(BaseException): pass\n"
# What is wrong: the source of the plugin's module, and what its one line must contain.
BAD = {
    "raises at import": ("raise ValueError('out of order')", "out of order"),
    "needs what is not there": ("import left_pad", "left_pad"),
    "no Python": ("def (:", "SyntaxError"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "raises no Exception": (TASK + "raise _Evil('hm')", "_Evil: hm"),
    "raises what cannot say what it is": (
        TASK + "class _Mute(Exception):\n    def __str__(self): raise ValueError\nraise _Mute",
        "_Mute: (its __str__ raises ValueError)",
    ),
    "clears the screen": ("raise ValueError(chr(27) + '[2Jgone')", "ValueError: ?[2Jgone"),
    "has an entry that exits": (
        "import mmzoo\nclass _Odd(mmzoo.Entry):\n    def __getattribute__(self, name): raise SystemExit('entry')\n"
        "@mmzoo.hookimpl\ndef mmzoo_encoders(): return [_Odd.__new__(_Odd)]",
        "SystemExit: entry",
    ),
    "recurses": ("def f(): f()\nf()", "RecursionError"),
    "returns None": (HOOK + "return None", "returned NoneType where a list of mmzoo.Entry belongs"),
    "returns text": (HOOK + "return 'odd'", "returned str"),
    "returns a mapping": (HOOK + "return {}", "returned dict"),
    "returns what is no entry": (HOOK + "return [('encoder', 'odd')]", "tuple where an mmzoo.Entry belongs"),
    "generates and raises": (HOOK + f"yield {ENTRY.format('')}\n    raise ValueError('halfway')", "halfway"),
    "never stops generating": (HOOK + f"while True: yield {ENTRY.format('')}", "more than 10000 entries"),
    "no text": (HOOK + f"return [{ENTRY.format(', license=3')}]", "license 3 is not text"),
    "a huge text": (HOOK + f"return [{ENTRY.format(', source=chr(120) * 10**6')}]", "one line of 1000 characters"),
    "moves the cursor": (HOOK + f"return [{ENTRY.format(', modality=chr(27) + chr(91) + chr(50) + chr(74)')}]", "modality"),
    "turns text around": (HOOK + f"return [{ENTRY.format(', source=chr(0x202e)')}]", "source"),
    "turns an error around": ("raise ValueError(chr(0x202e) + 'gone')", "ValueError: ?gone"),
    "no options": (HOOK + f"return [{ENTRY.format(', tiny=[1]')}]", "tiny is not a mapping"),
    "options that are no data": (HOOK + f"return [{ENTRY.format(', tiny=dict(a=object())')}]", "tiny is not JSON"),
    "an unhashable name": (HOOK + "return [mmzoo.Entry('encoder', ['odd'], target='a.b:C', summary='odd')]", "name ['odd']"),
    "misspells a hook": ("import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_encodres(): return []", "did you mean 'mmzoo_encoders'"),
    "forgets the mark": ("def mmzoo_encoders(): return []", "write @mmzoo.hookimpl above it"),
    "has no hook": ("import mmzoo", "has no hook"),
    "asks for an argument": ("import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_encoders(colour): return []", "colour"),
    "wraps a hook": ("import mmzoo\n@mmzoo.hookimpl(wrapper=True)\ndef mmzoo_encoders():\n    return (yield)", "is a wrapper"),
    "takes a taken name": (HOOK + "return [mmzoo.Entry('encoder', 'cnn', target='a.b:C', summary='odd')]", "both 'mmzoo' and"),
    "takes a command's name": (
        "import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_commands(): "
        "return [mmzoo.Entry('command', 'list', target='a.b:C', summary='odd')]",
        "has the name of a command of mmzoo",
    ),
    "asks what there is": (HOOK + "return [e for e in mmzoo.entries('encoder')]", "still being loaded"),
    "is for another major version": (
        "MMZOO_API = '2.0'",
        "version 2.0 of mmzoo's plugin API, and this mmzoo has 1.0:",
    ),
    "is for a newer minor version": ("MMZOO_API = '1.999'", "pip install --upgrade mmzoo"),
    "is for an older major version": ("MMZOO_API = '0.9'", "pip install --upgrade mmzoo-bad"),
    "says no version": ("MMZOO_API = 1", 'must be "MAJOR.MINOR"'),
    "says far too much": ("MMZOO_API = '9' * 10**6", 'must be "MAJOR.MINOR"'),
    "says what nobody can read": ("class _Odd:\n    def __repr__(self): raise ValueError\nMMZOO_API = _Odd()", "is <_Odd whose"),
    "waits": ("import mmzoo\n@mmzoo.hookimpl\nasync def mmzoo_encoders(): return []", "hook mmzoo_encoders is async"),
    "has a list for a hook": ("mmzoo_encoders = []", "mmzoo_encoders is []; a hook is a function"),
    "has a class for a hook": ("import mmzoo\n@mmzoo.hookimpl\nclass mmzoo_encoders: pass", "; a hook is a function"),
    "says why on a later line": ("raise ValueError('\\n\\nout of order')", "ValueError: out of order"),
    "names no module": (HOOK + "return [mmzoo.Entry('encoder', 'odd', target='a..b:C', summary='odd')]", "target 'a..b:C'"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD)
def test_a_bad_plugin_is_one_line_and_the_rest_lists_and_builds(tmp_path, monkeypatch, source, message):
    install(tmp_path, "mmzoo-bad", source)
    install(tmp_path, "mmzoo-good", GOOD.format(entry="stranger-cnn"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(manager, "_current", None)
    with hosted() as host:
        (failure,) = host.failures
        assert failure.plugin == "mmzoo-bad"
        assert message in failure.line
        assert "Traceback" in failure.trace
        assert len(failure.trace) < 10**6
        assert "mmzoo" in failure.fix
        assert {entry.plugin for entry in mmzoo.entries()} == {"mmzoo", "mmzoo-good"}
        assert not host.manager.has_plugin("mmzoo-bad:plugin")
        assert mmzoo.check("cnn-product-lstm", encoder="stranger-cnn").parts[0].use == "stranger-cnn"


def test_a_plugin_for_another_version_of_mmzoo_is_not_even_imported(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-bad", "import nothing_of_the_sort", needs=("mmzoo[demo]>=9 ; python_version > '3'", "numpy"))
    install(tmp_path, "mmzoo-good", GOOD.format(entry="a"), needs=("mmzoo>=0.0.1", "mmzoo>=9 ; extra == 'test'", "mmzoo-bad>=3"))
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        (failure,) = host.failures
        assert "needs mmzoo>=9, and" in failure.error
        assert failure.fix == "pip install --upgrade 'mmzoo-bad' 'mmzoo>=9'"


@pytest.mark.parametrize("where", ["import", "hook"])
@pytest.mark.parametrize("how", ["loops", "sleeps"])
def test_a_plugin_that_hangs_has_a_limit(tmp_path, monkeypatch, where, how):
    code = "import time; end = time.monotonic() + 5\n{0}while time.monotonic() < end: pass\n" if how == "loops" else HANG
    source = code.format("") if where == "import" else HOOK + code.format("    ")
    install(tmp_path, f"mmzoo-{where}-{how}", source)  # a name of its own: its import holds the lock of its module
    install(tmp_path, "mmzoo-zlast", GOOD.format(entry="stranger-cnn"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MMZOO_PLUGIN_TIMEOUT", "0.5")
    with hosted() as host:
        (failure,) = host.failures
        assert "took longer than 0.5 s to load (MMZOO_PLUGIN_TIMEOUT sets the limit)" in failure.error
        assert ("while time.monotonic() < end" if how == "loops" else "time.sleep(5)") in failure.trace, "it says where"
        assert mmzoo.entries("encoder", "stranger-cnn"), "plugins after it are loaded"


def test_a_late_plugin_registers_nothing_when_it_ends(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-late", GOOD.format(entry="late") + "import time; time.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MMZOO_PLUGIN_TIMEOUT", "0.3")
    with hosted() as host:
        for thread in threading.enumerate():
            if thread.name == "mmzoo-plugin":
                thread.join(10)
        assert [failure.plugin for failure in host.failures] == ["mmzoo-late"]
        assert not mmzoo.entries("encoder", "late")


def test_a_limit_that_is_no_number_is_an_error(monkeypatch):
    for text in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("MMZOO_PLUGIN_TIMEOUT", text)
        with pytest.raises(SettingsError, match="MMZOO_PLUGIN_TIMEOUT"):
            PluginManager()


def test_prints_of_a_plugin_go_to_stderr_and_its_warnings_are_recorded(tmp_path, monkeypatch, capsys):
    install(tmp_path, "mmzoo-loud", "print('hello')\nimport warnings; warnings.warn('careful')\n" + GOOD.format(entry="loud"))
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hosted() as host:
            assert host.failures == []
            assert host.get("encoder", "loud")
            assert [plugin.notes for plugin in host.plugins if plugin.dist == "mmzoo-loud"] == [["UserWarning: careful"]]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\n"


def test_entries_are_kept_as_data_alone():
    class Sly(mmzoo.Entry):
        def row(self):
            raise RuntimeError

        def problems(self):
            return []

    def load(name):
        sly = Sly("encoder", name, target="a.b:C", summary="sly")
        module = type("module", (), {"mmzoo_encoders": staticmethod(mmzoo.hookimpl(lambda: [sly]))})
        host = PluginManager()
        host.load([fake_entry_point("p", module, dist="mmzoo-sly")])
        return host

    assert load("sly").registry.entries()[0].row()["name"] == "sly"
    assert "Sly Fox" in load("Sly Fox").failures[0].error


def test_a_malformed_list_of_entry_points_is_its_own_failure(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-bad", "")
    (tmp_path / "mmzoo_bad-1.0.dist-info" / "entry_points.txt").write_text("[mmzoo]\nnothing here\n")
    install(tmp_path, "mmzoo-worse", "")
    (tmp_path / "mmzoo_worse-1.0.dist-info" / "entry_points.txt").write_text("[mmzoo]\nplugin = no module!\n")
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        assert [failure.plugin for failure in host.failures] == ["mmzoo-bad", "mmzoo-worse"]
        assert mmzoo.entries("encoder")


@pytest.mark.parametrize("file", ["METADATA", "entry_points.txt"])
def test_metadata_that_is_not_text_breaks_nothing_else(tmp_path, monkeypatch, file):
    install(tmp_path, "mmzoo-good", GOOD.format(entry="stranger-cnn"))
    install(tmp_path, "mmzoo-odd", "import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_metrics(): return []")
    (path,) = tmp_path.glob(f"mmzoo_odd*/{file}")
    path.write_bytes(b"\xff\xfe\0")
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        names = {plugin.dist for plugin in host.plugins if plugin.state == manager.IN_USE}
        assert names == {"mmzoo", "mmzoo-good", *(["unknown"] if file == "METADATA" else [])}


def test_the_second_copy_of_a_distribution_is_ignored(tmp_path, monkeypatch):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        install(tmp_path / place, "mmzoo-good", GOOD.format(entry=f"from-{place}"))
        monkeypatch.syspath_prepend(tmp_path / place)
    with hosted() as host:
        assert [entry.name for entry in mmzoo.entries("encoder") if entry.plugin == "mmzoo-good"] == ["from-b"]
        assert host.failures == []


def test_each_of_several_entry_points_has_a_name_of_its_own(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-two", GOOD.format(entry="stranger-cnn"), mmzoo_odd="raise ValueError('odd')")
    (tmp_path / "mmzoo_two-1.0.dist-info" / "entry_points.txt").write_text("[mmzoo]\nbad = mmzoo_odd\ngood = mmzoo_two\n")
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        assert [failure.plugin for failure in host.failures] == ["mmzoo-two:bad"]
        assert {plugin.name for plugin in host.plugins if not plugin.is_own} >= {"mmzoo-two:bad", "mmzoo-two:good"}
        assert mmzoo.entries("encoder", "stranger-cnn")
    with hosted(settings.PluginSelection(disabled=frozenset({"mmzoo-two:bad"}))) as host:
        assert host.failures == []
        assert mmzoo.entries("encoder", "stranger-cnn")
    with (
        hosted(settings.PluginSelection(disabled=frozenset({"mmzoo-two"}))),
        pytest.raises(UnknownName, match="'mmzoo-two:good', which is disabled: mmzoo plugin enable mmzoo-two$"),
    ):
        mmzoo.check("cnn-product-lstm", encoder="stranger-cnn")
    (tmp_path / "mmzoo_two-1.0.dist-info" / "entry_points.txt").write_text("[mmzoo]\na = mmzoo_two\nb = mmzoo_two\n")
    with hosted() as host:
        assert "encoder 'stranger-cnn' comes from 'mmzoo-two' twice" in host.failures[0].error


def test_the_name_of_a_distribution_is_safe_in_a_terminal_and_a_shell(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-bad", "raise ValueError('odd')")
    about = "Metadata-Version: 2.4\nName: \x1b[2Jbad; rm -rf ~\nVersion: \x1b[31m1\n\n"
    (tmp_path / "mmzoo_bad-1.0.dist-info" / "METADATA").write_text(about)
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        (failure,) = host.failures
        assert failure.plugin == "_2Jbad_rm_-rf_"
        assert next(plugin.version for plugin in host.plugins if plugin.failure) == "?[31m1"
        assert failure.fix == "pip install --upgrade _2Jbad_rm_-rf_"


# From Python, and when parts are built


def test_python_is_warned_once(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-bad", "raise ValueError('out of order')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(manager, "_current", None)
    with warnings.catch_warnings(record=True) as warned:
        mmzoo.entries()
        mmzoo.entries()
    assert [str(warning.message) for warning in warned] == [
        "plugin 'mmzoo-bad' is not in use: ValueError: out of order (`mmzoo doctor` says more)"
    ]


def test_several_are_one_line_too(tmp_path, monkeypatch):
    for i in range(7):
        install(tmp_path, f"mmzoo-bad{i}", "raise ValueError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(manager, "_current", None)
    with pytest.warns(PluginWarning, match=r"7 plugins are not in use: mmzoo-bad0, .* and 2 more") as warned:
        mmzoo.entries()
    assert len(warned) == 1


PART = """
from mmzoo.api import Encoder, Fusion, Options
class {name}(Encoder):
    Options = Options
    transform = None
    def __init__(self, options):
        super().__init__()
        {body}
    def forward(self, inputs): ...
"""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("raise ValueError('no such file')", "could not be imported from mmzoo_bad_parts:Part: ValueError: no such file"),
        ("import sys; sys.exit(3)", "could not be imported"),
        ("Part = 7", "has no pydantic Options"),
        (PART.format(name="Part", body="raise RuntimeError('no eyes')"), "could not be built: RuntimeError: no eyes"),
        (PART.format(name="Part", body="raise SystemExit(1)"), "could not be built: SystemExit: 1"),
        (PART.format(name="Part", body="pass"), "its spec is not a mmzoo.api.FeatureSpec"),
    ],
    ids=["import", "exit", "no class", "raises", "exits when made", "no spec"],
)
def test_what_breaks_when_it_is_built_names_its_plugin(tmp_path, monkeypatch, target, message):
    source = GOOD.format(entry="blind").replace("mmzoo_scratch.cnn:CNN", "mmzoo_bad_parts:Part")
    install(tmp_path, "mmzoo-bad", source, mmzoo_bad_parts=target)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mmzoo_bad_parts", raising=False)
    with hosted() as host:
        assert host.failures == []
        with pytest.raises(PluginBroken, match="mmzoo-bad") as broken:
            mmzoo.check("cnn-product-lstm", encoder="blind")
        assert message in str(broken.value)
        assert mmzoo.check("cnn-product-lstm")
        # A refusal tries every entry to suggest one that fits; this one does not stop it.
        with pytest.raises(mmzoo.errors.DoesNotFit, match=r"Each fusion that fits: .*"):
            mmzoo.check("cnn-product-lstm", fusion="none")
    monkeypatch.delitem(sys.modules, "mmzoo_bad_parts", raising=False)


def broken_hooks(error):
    class Plugin:
        @mmzoo.hookimpl
        def mmzoo_model_built(self, model):
            raise error

        @mmzoo.hookimpl
        def mmzoo_train_callbacks(self, recipe):
            raise error

        @mmzoo.hookimpl
        def mmzoo_card_sections(self, model, run):
            raise error

    return Plugin()


def test_a_lifecycle_hook_that_raises_is_reported_once_and_skipped(classifier, sample, tmp_path, quick):
    with with_plugin(broken_hooks(ValueError("no"))), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        mmzoo.build(classifier, seed=0)
        run = mmzoo.train(classifier, dataset=sample, output=tmp_path / "m", progress=False, training=quick)
        assert mmzoo.load(tmp_path / "m").card()
    assert run.finished
    messages = [str(warning.message) for warning in warned if issubclass(warning.category, PluginWarning)]
    assert len(messages) == 3
    for hook in ("mmzoo_model_built", "mmzoo_train_callbacks", "mmzoo_card_sections"):
        assert any(f"plugin 'mmzoo-bad': its {hook} failed and is skipped: ValueError: no (" in line for line in messages)


def test_a_lifecycle_hook_that_returns_a_wrong_value_is_skipped(classifier):
    class Plugin:
        mmzoo_card_sections = staticmethod(mmzoo.hookimpl(lambda model, run: ["title"]))
        mmzoo_train_callbacks = staticmethod(mmzoo.hookimpl(lambda recipe: [print]))
        mmzoo_model_built = staticmethod(mmzoo.hookimpl(lambda model: "thanks"))

    with with_plugin(Plugin()):
        model = mmzoo.build(classifier, seed=0)
        with pytest.warns(PluginWarning, match="must return pairs of a title"):
            assert "title" not in model.card()
        with pytest.warns(PluginWarning, match=r"must return transformers\.TrainerCallback objects, not builtin"):
            assert not any(manager.plugin_manager().manager.hook.mmzoo_train_callbacks(recipe=model.recipe))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (7, "it must return a list, not int"),
        ([("a", "\ud800")], "UnicodeEncodeError"),
        ([("a\n# b", "c")], "a title must be one line"),
        ([("a", "b" * 5_000_000)], "sections have 5000001 bytes"),
        (itertools.repeat(("a", "b")), "more than 1000"),
    ],
    ids=["a number", "no text", "two lines", "huge", "endless"],
)
def test_a_card_can_be_written_and_read_whatever_a_plugin_adds_to_it(classifier, tmp_path, sections, message):
    class Plugin:
        mmzoo_card_sections = staticmethod(mmzoo.hookimpl(lambda model, run: sections))

    model = mmzoo.build(classifier, seed=0)
    with with_plugin(Plugin()), pytest.warns(PluginWarning, match=message):
        model.save(tmp_path / "m")
    assert mmzoo.load(tmp_path / "m")


def test_a_callback_that_returns_a_wrong_value_is_skipped(classifier, sample, tmp_path, quick):
    from transformers import TrainerCallback

    class Odd(TrainerCallback):
        def on_train_begin(self, *_, **__):
            return "go"

    plugin = type("Plugin", (), {"mmzoo_train_callbacks": staticmethod(mmzoo.hookimpl(lambda recipe: [Odd()]))})()
    with with_plugin(plugin), pytest.warns(PluginWarning, match=r"its Odd\.on_train_begin failed .*TrainerControl, not str"):
        assert mmzoo.train(classifier, output=tmp_path / "a", dataset=sample, progress=False, training=quick).finished


def test_a_callback_that_raises_does_not_end_the_training_unless_it_means_to(classifier, sample, tmp_path, quick):
    from transformers import TrainerCallback

    class Bad(TrainerCallback):
        def __init__(self, error):
            self.error = error

        def on_step_end(self, *_, **__):
            raise self.error

    def plugin(error):
        hook = staticmethod(mmzoo.hookimpl(lambda recipe: [Bad(error)]))
        return type("Plugin", (), {"mmzoo_train_callbacks": hook})()

    options = {"dataset": sample, "progress": False, "training": quick}
    with with_plugin(plugin(ValueError("no"))), pytest.warns(PluginWarning, match=r"its Bad\.on_step_end failed"):
        assert mmzoo.train(classifier, output=tmp_path / "a", **options).finished
    with with_plugin(plugin(TrainingError("enough"))), pytest.raises(TrainingError, match="enough"):
        mmzoo.train(classifier, output=tmp_path / "b", **options)
