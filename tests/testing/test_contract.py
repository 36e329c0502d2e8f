"""The conformance kit: for each check a plugin that breaks its contract, and what is said of it."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import run

import mmzoo
from mmzoo import testing
from mmzoo.errors import ContractBroken, UnknownName
from mmzoo.registry.manager import plugin_manager, reset
from mmzoo.testing import CHECKS, Case
from mmzoo.testing.contract import Inapplicable
from mmzoo.testing.subject import InstalledPlugin, Subject

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "plugin-contract.md"
IMAGES = {"tiny": {"image_size": 16, "channels": [8, 16]}, "modality": "image"}

# By check: the kind of a broken entry, its target in tests/helpers/broken.py, what it is besides, and what is reported.
BROKEN = {
    "metadata": ("encoder", "OtherDim", {**IMAGES, "source": ""}, "source is empty"),
    "target": ("encoder", "NoEncoder", IMAGES, "not a subclass of mmzoo.api.Encoder"),
    "options": ("encoder", "TakesAnything", IMAGES, "options without a description: image_size, channels"),
    "features": ("encoder", "OtherDim", IMAGES, "pooled is [3, 32], not [3, 33]"),
    "states": (
        "language_model",
        "SeesAhead",
        {"tiny": {"dim": 16}, "modality": "text"},
        "a state depends on a later position",
    ),
    "positions": ("fusion", "AddsOneMore", {}, "early adds 2 positions, and added_tokens is 3"),
    "missing-inputs": ("fusion", "AveragesTokens", {}, "the loss is not finite where an input is missing"),
    "several-callers": ("fusion", "KeepsFeatures", {}, "threads that predict at the same time get other predictions"),
    "answers": ("task", "LearnsTwice", {}, "it learns again what it has learned"),
    "devices": ("encoder", "StaysBehind", IMAGES, "moved to the CPU it fails"),
    "dtypes": ("encoder", "OneType", IMAGES, "as bfloat16 it fails"),
    "batches": ("task", "CountsItsBatch", {}, "predictions in a batch and alone differ"),
    "seeded": ("encoder", "Unseeded", IMAGES, "two builds differ in encoders.image.noise"),
    "gradients": ("encoder", "Idle", IMAGES, "no gradient reaches idle"),
    "save-and-load": ("encoder", "Forgets", IMAGES, "predicts otherwise than the saved one"),
    "partners": ("fusion", "NeedsTokens", {}, "none + broken-partners + gpt-mini + vqa: IndexError"),
    "picklable": ("encoder", "Unpicklable", IMAGES, "it cannot be pickled"),
    "compiled": ("encoder", "OtherwiseCompiled", IMAGES, "compiled, the loss is"),
    "recomputed": (
        "language_model",
        "OtherwiseRecomputed",
        {"tiny": {"dim": 16, "heads": 2, "layers": 1}, "modality": "text"},
        "with recomputed blocks, the loss is",
    ),
    "examples": ("dataset", "Repeats", {"modality": "image"}, "ids of split 'train' repeat"),
    "trains": ("dataset", "LacksTargets", {"modality": "image"}, "example without has no target text"),
    "scores": ("metric", "Flatters", {}, "predictions that are not their references score 1.0 too"),
    "builds": ("recipe", "RECIPE", {}, "encoder.shape"),
    "exchange": ("format", "ReadsAnything", {}, "a folder with only notes.txt is read without an error"),
    "helps": ("command", "command", {}, "name 'OnlyForTypeCheckers' is not defined"),
}

MINI = {"tiny": {"dim": 16, "heads": 2, "layers": 1}, "modality": "text"}
# More that checks catch, and what they say of it instead of what breaks further on.
ALSO = [
    ("target", "command", "waits", {}, "is async, and nothing awaits it"),
    ("features", "encoder", "WiderInTraining", IMAGES, "in training tokens are [3, 16, 32], not [3, 16, 16]"),
    ("features", "encoder", "Shuffles", IMAGES, "two passes over one batch give different features"),
    ("features", "encoder", "RaisesNoException", IMAGES, "BaseExceptionGroup: many"),
    ("states", "language_model", "WritesNumbers", MINI, "not a tensor of token ids"),
    ("states", "language_model", "WritesForOthers", MINI, "generate returns [2, 2] for one text and two new tokens"),
    ("states", "language_model", "WritesAnything", MINI, "; the vocabulary has"),
    ("missing-inputs", "fusion", "SeesItsBatch", {}, "a missing input changes the loss of others"),
    ("several-callers", "fusion", "KeepsAFunction", {}, "a deep copy of the model runs the fusion of the original"),
    ("several-callers", "fusion", "CopiesWrongly", {}, "what changes a deep copy of the model changes the original"),
    ("answers", "task", "LosesOne", {}, "the term 'cross-entropy' is Tensor, not the sum and the number of labels"),
    ("answers", "task", "LosesNoNames", {}, "loss returns tuple, not a mapping of terms"),
    ("answers", "task", "LosesNumbers", {}, "the sum of 'cross-entropy' is"),
    ("examples", "dataset", "HoldsTexts", {"modality": "image"}, "split 'train' has ['a'], not mmzoo.Example objects"),
    ("examples", "dataset", "HoldsNothing", {"modality": "image"}, "load('train') returns 7, not examples"),
    ("examples", "dataset", "HasOneSplit", {"modality": "image"}, "splits are 'train', not a list of names"),
    ("scores", "metric", "Lists", {}, "rows returns [[1.0], [1.0]], not an array of numbers"),
    ("scores", "metric", "Words", {}, "not an array of numbers"),
    ("answers", "task", "LosesMeans", {}, "it is a mean, which would be divided again"),
    ("positions", "fusion", "IsBlind", {}, "other features of the encoder change nothing"),
    ("positions", "fusion", "ReadsPadding", {}, "tokens whose features.mask is 0 change the loss"),
    ("states", "language_model", "ReadsPrompts", MINI, "depends on the padding or the other prompts of the batch"),
    ("states", "language_model", "WritesPast", MINI, "generate does not call output_layer"),
    ("states", "language_model", "WritesOn", MINI, "generate ignores stopping_criteria"),
    ("scores", "metric", "Errs", {}, "smaller_is_better must be True"),
    ("features", "encoder", "HearsSilence", {"modality": "pulse"}, "or on the padding: use the lengths that forward gets"),
    ("features", "encoder", "HearsNothingKnown", {"modality": "pulse"}, "read must accept what probes returns"),
]
# What is unlike anything of ours, and does all that it should.
GOOD = [
    ("encoder", "Heard", {"modality": "pulse"}),
    ("task", "Measures", {}),
    ("metric", "Distance", {}),
]


@pytest.fixture
def fresh_host():
    yield
    reset()


def test_an_option_that_would_never_be_reached_is_named(fresh_host):
    entry = mmzoo.Entry("encoder", "hides", "broken:Hides", "broken", license="MIT", source="this test", **IMAGES)
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    with pytest.raises(ContractBroken, match="keys of every part of a recipe: train"):
        Case(CHECKS["options"], Subject(plugin_manager().get("encoder", "hides"))).run()


@pytest.mark.parametrize(("check", "kind", "target", "more", "happened"), ALSO, ids=[case[2] for case in ALSO])
def test_what_is_wrong_is_said_where_it_is(check, kind, target, more, happened, fresh_host):
    entry = mmzoo.Entry(kind, "broken-also", f"broken:{target}", "broken", license="MIT", source="this test", **more)
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    with pytest.raises(ContractBroken, match=re.escape(happened)):
        Case(CHECKS[check], Subject(plugin_manager().get(kind, "broken-also"))).run()


@pytest.mark.parametrize(("kind", "target", "more"), GOOD, ids=[case[1] for case in GOOD])
def test_a_modality_of_its_own_and_numbers_for_words_pass(kind, target, more, fresh_host):
    entry = mmzoo.Entry(kind, "good", f"broken:{target}", "good", license="MIT", source="this test", **more)
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    subject = Subject(plugin_manager().get(kind, "good"))
    checks = [check for check in CHECKS.values() if kind in check.kinds]
    assert checks
    for check in checks:
        Case(check, subject).run()


@pytest.mark.parametrize("target", ["Shift", "ClosesOver"])
@pytest.mark.parametrize("check", ["missing-inputs", "several-callers"])
def test_hooks_pass_whatever_they_close_over(target, check, fresh_host):
    """A deep copy of a model attaches its own, since a function's closure is not copied."""
    entry = mmzoo.Entry("fusion", "good", f"broken:{target}", "good", license="MIT", source="this test")
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    Case(CHECKS[check], Subject(plugin_manager().get("fusion", "good"))).run()


def test_a_part_that_changes_torchs_default_type_changes_no_other(fresh_host):
    import torch

    for target in ("MakesAllDouble", "HasMadeAllDouble"):
        entry = mmzoo.Entry(
            "encoder", target.lower(), f"broken:{target}", "broken", **{"license": "MIT", "source": "it", **IMAGES}
        )
        plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    model = mmzoo.build("cnn-product-lstm", encoder="makesalldouble", seed=0)
    assert {weight.dtype for weight in model.fusion.parameters()} == {torch.float32}
    with pytest.raises(ContractBroken, match=r"changes torch's default dtype to torch\.float64"):
        Case(CHECKS["metadata"], Subject(plugin_manager().get("encoder", "hasmadealldouble"))).run()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_fails_its_check(name, fresh_host):
    kind, target, more, happened = BROKEN[name]
    entry = mmzoo.Entry(kind, f"broken-{name}", f"broken:{target}", "broken", **{"license": "MIT", "source": "this test", **more})
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    case = Case(CHECKS[name], Subject(plugin_manager().get(kind, entry.name)))
    with pytest.raises(ContractBroken) as broken:
        case.run()
    said = str(broken.value)
    assert happened in said
    assert CHECKS[name].contract in said
    assert f"docs/plugin-contract.md#{name}" in said
    assert str(case) == f"{name}-{kind}-broken-{name}"


def installed(folder, monkeypatch, code, **modules):
    """A distribution ``mmzoo-broken`` whose plugin is ``code``, as pip would have put it into ``folder``."""
    package = folder / "mmzoo_broken"
    package.mkdir()
    for name, text in {"__init__": "", "plugin": "import mmzoo\n" + textwrap.dedent(code), **modules}.items():
        (package / f"{name}.py").write_text(text)
    info = folder / "mmzoo_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmzoo-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmzoo]\nbroken = mmzoo_broken.plugin\n")
    (folder / "timm.py").write_text("")  # it takes seconds
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if not k.startswith("mmzoo_broken")})
    reset()
    return InstalledPlugin("mmzoo-broken")


ENTRY = """
@mmzoo.hookimpl
def mmzoo_metrics():
    return [mmzoo.Entry("metric", "mine", "mmzoo_broken.metric:Mine", "a metric", license="MIT", source="this test")]
"""
COMMAND = """
@mmzoo.hookimpl
def mmzoo_commands():
    return [mmzoo.Entry("command", "mine", "mmzoo_broken.command:mine", "a command", license="MIT", source="this test")]
"""
METRIC = "from mmzoo_metrics.classification import Accuracy as Mine\n"


@pytest.mark.parametrize(
    ("name", "code", "metric", "happened"),
    [
        ("loads", "@mmzoo.hookimpl\ndef mmzoo_metricks():\n    return []\n", METRIC, "unknown hook 'mmzoo_metricks'"),
        ("loads", "", METRIC, "has no hook"),
        ("loads", "@mmzoo.hookimpl\ndef mmzoo_metrics():\n    return []\n", METRIC, "has no entry and no hook"),
        ("listing", "import timm" + ENTRY, METRIC, "the import loads timm"),
        ("listing", "import time\ntime.sleep(0.06)" + ENTRY, METRIC, "the import takes mmzoo_broken.plugin 6"),
        ("side-effects", "open('log.txt', 'w').close()" + ENTRY, "", "the import does: open "),
        ("side-effects", ENTRY, "import socket\nsocket.socket().connect(('10.0.0.1', 80))", "socket.connect ('10.0.0.1', 80)"),
        ("side-effects", ENTRY, "import os\nos.mkdir(os.path.expanduser('~/.mine'))", "os.mkdir"),
        ("side-effects", ENTRY, "import os\nos._exit(3)", "ended with 3"),
        (
            "side-effects",
            "import os, random, sys; os.chdir('/'); os.environ['ODD'] = '1'; random.seed(0); sys.stdout = sys.stderr" + ENTRY,
            METRIC,
            "changes the environment, the working directory, the standard streams, the state of random",
        ),
        ("side-effects", ENTRY, "1 / 0", "the import fails: ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_fails_its_check(name, code, metric, happened, tmp_path, monkeypatch, fresh_host):
    monkeypatch.chdir(tmp_path)  # where a broken plugin writes
    case = Case(CHECKS[name], installed(tmp_path, monkeypatch, code, metric=metric))
    with pytest.raises(ContractBroken) as broken:
        case.run()
    said = str(broken.value)
    assert happened in said
    assert CHECKS[name].contract in said
    assert f"docs/plugin-contract.md#{name}" in said


def test_an_import_that_hangs_is_stopped(tmp_path, monkeypatch, fresh_host):
    monkeypatch.setattr("mmzoo.testing.probe.SECONDS", 2)
    plugin = installed(tmp_path, monkeypatch, COMMAND, command="import time\ntime.sleep(60)")
    with pytest.raises(ContractBroken, match="the import does not end within 2 s"):
        Case(CHECKS["side-effects"], plugin).run()


def test_every_check_is_broken_here():
    assert {*BROKEN, "loads", "listing", "side-effects"} == set(CHECKS)


def test_what_the_cache_is_for_is_no_side_effect(tmp_path, monkeypatch, fresh_host):
    cached = (
        "from mmzoo.common.files import cache_folder\ncache_folder().mkdir(exist_ok=True)\n(cache_folder() / 'a').write_text('b')"
    )
    Case(CHECKS["side-effects"], installed(tmp_path, monkeypatch, ENTRY, metric=cached)).run()


def test_every_failure_is_listed_and_on_the_command_line_the_answer_is_no(tmp_path, monkeypatch, fresh_host):
    installed(tmp_path, monkeypatch, COMMAND.replace("MIT", ""), command="def mine(value: 'Nowhere'): pass")
    with pytest.raises(ContractBroken, match=r"mmzoo-broken: 2 of 6 checks failed") as broken:
        testing.check_plugin("mmzoo-broken")
    assert "1. metadata of command-mine" in str(broken.value)
    assert "2. helps of command-mine" in str(broken.value)
    table = run("plugin", "check", "mmzoo-broken", code=1).stdout
    assert re.search(r"metadata +✗", table)
    assert re.search(r"target +✓", table)
    assert str(broken.value).partition("1. ")[2].splitlines()[1] in table
    rows = json.loads(run("plugin", "check", "mmzoo-broken", "--json", code=1).stdout)
    assert [row["check"] for row in rows if not row["passed"]] == ["metadata", "helps"]
    assert {row["documentation"] for row in rows} == {f"docs/plugin-contract.md#{row['check']}" for row in rows}


def test_a_plugin_that_keeps_the_contract(tmp_path, monkeypatch, fresh_host):
    installed(tmp_path, monkeypatch, COMMAND, command="def mine():\n    print('mine')")
    testing.check_plugin("mmzoo-broken")
    assert "all 6 checks passed" in run("plugin", "check", "mmzoo_broken").stdout


def test_what_a_check_needs_and_is_not_there_is_said(tmp_path, monkeypatch, fresh_host):
    code = METRIC + (
        "from mmzoo.api import DataError\n"
        "class Mine(Mine):\n    def __init__(self, options=None):\n        raise DataError('needs Java')\n"
    )
    plugin = installed(tmp_path, monkeypatch, ENTRY, metric=code)
    with pytest.raises(Inapplicable, match="needs Java"):
        Case(CHECKS["scores"], Subject(plugin.entries[0])).run()
    said = run("plugin", "check", "mmzoo-broken").stdout
    assert "- scores-metric-mine: needs Java" in said


@pytest.mark.parametrize(
    ("name", "said"), [("mmzoo-nowhere", "no distribution 'mmzoo-nowhere'"), ("pytest", "it is not a plugin")]
)
def test_what_is_no_plugin(name, said):
    with pytest.raises(UnknownName, match=said):
        testing.check_plugin(name)
    assert said in run("plugin", "check", name, code=2).stderr


def test_the_page_has_every_check():
    text = PAGE.read_text(encoding="utf-8")
    flat = " ".join(text.split())
    for check in CHECKS.values():
        assert f"\n## {check.name}\n" in text
        assert check.contract in flat


@pytest.fixture
def pytest_alone(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # whether or not it is installed, it is loaded by name
    return pytester


def test_the_plugin_for_pytest_runs_a_check_an_item(pytest_alone):
    pytest_alone.makepyfile("""
        import pytest

        @pytest.mark.mmzoo_plugin("mmzoo")
        def test_contract(mmzoo_case, mmzoo_offline):
            mmzoo_case.run()
    """)
    done = pytest_alone.runpytest_inprocess("-p", "mmzoo_pytest", "-v", "--strict-markers", "-k", "metadata-metric-f1")
    done.stdout.fnmatch_lines(["*test_contract[[]metadata-metric-f1[]] PASSED*"])


def test_without_a_marker_it_says_what_is_missing(pytest_alone):
    pytest_alone.makepyfile("def test_contract(mmzoo_case):\n    pass")
    done = pytest_alone.runpytest_inprocess("-p", "mmzoo_pytest")
    assert "mmzoo_case needs @pytest.mark.mmzoo_plugin('mmzoo-foo')" in done.stdout.str() + done.stderr.str()


def test_an_unrelated_test_pays_nothing_for_it(pytest_alone):
    pytest_alone.makepyfile("import sys\ndef test_it():\n    assert not {'mmzoo', 'torch'} & set(sys.modules)")
    pytest_alone.runpytest_subprocess("-p", "mmzoo_pytest").assert_outcomes(passed=1)


def test_a_check_that_never_ends_is_ended(fresh_host, monkeypatch):
    monkeypatch.setenv("MMZOO_PLUGIN_TIMEOUT", "0.05")
    entry = mmzoo.Entry("language_model", "endless", "broken:WritesForEver", "broken", license="MIT", source="this test", **MINI)
    plugin_manager().registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    with pytest.raises(ContractBroken, match="took longer than 3 s"):
        Case(CHECKS["states"], Subject(plugin_manager().get("language_model", "endless"))).run()
