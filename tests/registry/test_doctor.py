"""Test `mmzoo doctor`, `mmzoo plugin list, disable, enable`, and what every command says about a broken plugin."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from command_line import run
from fake_plugins import GOOD, hosted, install
from huggingface_hub import constants

import mmzoo
from mmzoo.cli.root import app
from mmzoo.registry import diagnosis, manager, settings
from mmzoo.registry.entries import RESERVED


def program(folder, *arguments, **env):
    """Run mmzoo in a new process with ``folder`` on its path."""
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "mmzoo", *arguments], env={**os.environ, "PYTHONPATH": path, **env}, capture_output=True, text=True
    )


def test_every_command_says_once_which_plugin_is_not_in_use_and_json_stays_json(tmp_path):
    install(tmp_path, "mmzoo-bad", "import os, sys\nos.write(1, b'noise'); print('noise', flush=True)\nraise ValueError('odd')")
    install(tmp_path, "mmzoo-good", "print('hello')\n" + GOOD.format(entry="stranger-cnn"))
    line = "warning: plugin 'mmzoo-bad' is not in use: ValueError: odd (`mmzoo doctor` says more)"
    for arguments in (["list", "encoder", "--json"], ["plugin", "list", "--json"]):
        done = program(tmp_path, *arguments)
        assert "stranger-cnn" in json.dumps(json.loads(done.stdout))
        assert done.stderr.splitlines().count(line) == 1
    done = program(tmp_path, "show", "nothing")
    assert done.returncode == 2
    assert done.stderr.splitlines().count(line) == 1
    assert done.stdout in ("", "noise")
    assert program(tmp_path, "list", MMZOO_PLUGINS="mmzoo-bda").stderr.startswith(
        "error: MMZOO_PLUGINS: there is no plugin 'mmzoo-bda'; did you mean mmzoo-bad"
    )
    assert "not in use" not in program(tmp_path, "list", MMZOO_PLUGINS="mmzoo-good").stderr


def test_the_commands_of_ours_are_those_that_no_plugin_may_bring():
    import typer

    group = typer.main.get_command(app)
    assert set(group.commands) <= RESERVED


def test_a_command_that_typer_cannot_read_leaves_the_help_whole(tmp_path, monkeypatch):
    source = (
        "import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_commands():\n"
        "    return [mmzoo.Entry('command', 'odd', target='mmzoo_odd:odd', summary='an odd one')]\ndef odd(x: int | str): ...\n"
    )
    install(tmp_path, "mmzoo-odd", source)
    monkeypatch.syspath_prepend(tmp_path)
    with hosted():
        assert "an odd one" in run("--help").stdout
        assert "command 'odd' of plugin 'mmzoo-odd'" in run("odd", code=2).stderr


def test_a_command_that_breaks_names_its_plugin_and_only_when_it_is_called(tmp_path, monkeypatch):
    source = "import mmzoo\n@mmzoo.hookimpl\ndef mmzoo_commands():\n    return [{}]"
    entry = "mmzoo.Entry('command', '{0}', target='mmzoo_odd_{0}:{0}', summary='an odd one')"
    modules = {
        "raises": "def raises(times: int = 1): raise ValueError('out of order')",
        "waits": "async def waits(): ...",
        "ends": "import os; os._exit(7)",
        "missing": "",
    }
    source = source.format(", ".join(entry.format(name) for name in modules))
    install(tmp_path, "mmzoo-odd", source, **{f"mmzoo_odd_{name}": text for name, text in modules.items()})
    monkeypatch.syspath_prepend(tmp_path)
    with hosted():
        assert run("--help").stdout.count("an odd one") == 4
        plain = re.sub(r"\x1b\[[0-9;]*m", "", run("raises", "--help").stdout)
        assert "--times" in plain
        assert "mmzoo_odd_waits:waits is async" in run("waits", code=2).stderr
        assert "could not be imported" in run("missing", "--help", "--more", "x", code=2).stderr
    done = program(tmp_path, "raises", "--times", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback"), "its author needs it"
    assert done.stderr.endswith("error: command 'raises' of plugin 'mmzoo-odd' failed: ValueError: out of order\n")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CONFIG", str(tmp_path / "config.json"))


def test_a_plugin_is_disabled_and_enabled_without_being_imported(tmp_path, monkeypatch, configured):
    install(tmp_path, "mmzoo-deadly", "import os; os._exit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    assert program(tmp_path, "list").returncode == 7, "there is no way to contain that"
    assert "mmzoo plugin enable mmzoo-deadly" in run("plugin", "disable", "mmzoo_deadly").stdout
    assert "already" in run("plugin", "disable", "mmzoo-deadly").stdout
    assert program(tmp_path, "list").returncode == 0
    with hosted(settings.read_selection()):
        rows = {row["plugin"]: row for row in json.loads(run("plugin", "list", "--json").stdout)}
        assert rows["mmzoo-deadly"]["state"] == "disabled"
        assert rows["mmzoo-deadly"]["fix"] == "mmzoo plugin enable mmzoo-deadly"
        assert rows["mmzoo:scratch"] == {
            "plugin": "mmzoo:scratch",
            "distribution": "mmzoo",
            "entry_point": "scratch",
            "version": mmzoo.__version__,
            "api": mmzoo.API_VERSION,
            "state": "in use",
            "entries": rows["mmzoo:scratch"]["entries"],
            "error": "",
            "fix": "",
        }
        assert "cnn" in rows["mmzoo:scratch"]["entries"]["encoder"]
        table = run("plugin", "list").stdout
        assert "mmzoo-deadly" in table
        assert "disabled" in table
    assert run("plugin", "enable", "mmzoo-deadly").stdout == "mmzoo-deadly is enabled\n"
    assert "was not disabled" in run("plugin", "enable", "mmzoo-deadly").stdout


def test_names_of_plugins_are_checked_and_completed(tmp_path, monkeypatch, configured):
    install(tmp_path, "mmzoo-good", GOOD.format(entry="a"))
    monkeypatch.syspath_prepend(tmp_path)
    assert "did you mean mmzoo-good" in run("plugin", "disable", "mmzoo-godo", code=2).stderr
    assert "did you mean mmzoo:timm" in run("plugin", "enable", "mmzoo:tim", code=2).stderr
    assert "one at a time" in run("plugin", "disable", "mmzoo", code=2).stderr
    assert run("plugin", "disable", "mmzoo:timm").stdout.startswith("mmzoo:timm is disabled")

    def completed(text):
        words = {"_MMZOO_COMPLETE": "complete_bash", "COMP_WORDS": f"mmzoo {text}", "COMP_CWORD": str(text.count(" ") + 1)}
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **words}
        code = "from mmzoo.cli.root import app; app(prog_name='mmzoo')"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        return done.stdout.split()

    assert "mmzoo-good" in completed("plugin disable mmzoo-")
    assert completed("plugin enable ") == ["mmzoo:timm"]


PARTS = {"mmzoo_bad_part": "raise ImportError('no eyes')"}


def test_doctor_reports_every_problem_with_its_fix(tmp_path, monkeypatch, configured):
    install(tmp_path, "mmzoo-deadly", "import os; os._exit(7)")
    install(tmp_path, "mmzoo-bad", "def load():\n    raise ValueError('out of order')\nload()\n")
    install(tmp_path, "mmzoo-old", "", needs=("mmzoo<0.0.1",))
    install(tmp_path, "mmzoo-off", "raise ValueError")
    blind = GOOD.format(entry="blind").replace("mmzoo_scratch.cnn:CNN", "mmzoo_bad_part:Part")
    install(tmp_path, "mmzoo-blind", "import warnings; warnings.warn('careful')\n" + blind, **PARTS)
    install(tmp_path, "mmzoo-good", GOOD.format(entry="stranger-cnn"))
    monkeypatch.syspath_prepend(tmp_path)
    settings.disable("mmzoo-off")
    report = json.loads(run("doctor", "--json", code=1).stdout)
    assert not report["well"]
    fixes = {
        next(name for name in ("deadly", "bad", "old", "blind") if f"mmzoo-{name}" in p["what"]): p for p in report["problems"]
    }
    assert len(fixes) == len(report["problems"]) == 4
    assert "exit code 7" in fixes["deadly"]["what"]
    assert fixes["deadly"]["fixes"] == ["mmzoo plugin disable mmzoo-deadly", "pip uninstall mmzoo-deadly"]
    assert "in load" in fixes["bad"]["trace"]
    assert "needs mmzoo<0.0.1" in fixes["old"]["what"]
    assert fixes["old"]["fixes"][0] == "pip install --upgrade 'mmzoo-old' 'mmzoo<0.0.1'"
    assert "encoder 'blind' of plugin 'mmzoo-blind' cannot be built" in fixes["blind"]["what"]
    assert "no eyes" in fixes["blind"]["trace"]
    states = {row["plugin"]: row["state"] for row in report["plugins"]}
    assert states["mmzoo-off"] == "disabled"
    assert states["mmzoo-good"] == states["mmzoo:scratch"] == "in use"
    assert any("careful" in note for note in report["notes"])
    assert {"python", "platform", "torch", "transformers"} <= set(report["environment"])
    assert report["torch"]["version"].startswith(report["environment"]["torch"])
    assert report["hub"]["said"] == "not tried: HF_HUB_OFFLINE is set"
    assert {cache["folder"] for cache in report["caches"]} >= {os.environ["MMZOO_CACHE"]}


def test_doctor_stops_when_too_many_plugins_end_the_process(tmp_path, monkeypatch, configured):
    for name in ("a", "b"):
        install(tmp_path, f"mmzoo-{name}", "import os; os._exit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(diagnosis.subprocess_checks, "MAX_CRASHES", 1)
    monkeypatch.setattr(diagnosis.subprocess_checks, "check_libraries", lambda _: diagnosis.subprocess_checks.LibraryResults())
    (problem,) = diagnosis.diagnose().problems
    assert problem.what == "the process ends while plugins are loaded (exit code 7), even without mmzoo-a"
    assert problem.fixes == ("MMZOO_PLUGINS= mmzoo doctor",)


@pytest.mark.slow
def test_doctor_and_the_list_sanitise_what_plugins_raise(tmp_path, monkeypatch, configured):
    warning = "import warnings; warnings.warn('\\x1b[2Jcareful \\udce9')\n"
    blind = GOOD.format(entry="blind").replace("mmzoo_scratch.cnn:CNN", "mmzoo_odd_part:Part")
    install(tmp_path, "mmzoo-bad", "raise ValueError('no file caf\\udce9')")
    install(tmp_path, "mmzoo-blind", warning + blind, mmzoo_odd_part="raise OSError('\\x1b[2Jno file caf\\udce9')")
    for arguments in (["plugin", "list"], ["plugin", "list", "--json"], ["doctor"], ["doctor", "--json"]):
        done = program(tmp_path, *arguments)
        assert done.returncode == ("doctor" in arguments)
        assert "no file caf?" in done.stdout
        assert "\x1b" not in done.stdout
        assert "Traceback" not in done.stderr
    assert "UserWarning: ?[2Jcareful ?" in done.stdout


@pytest.mark.slow
def test_doctor_goes_on_after_an_entry_that_hangs(tmp_path, monkeypatch, configured):
    source = GOOD.format(entry="{0}").replace("mmzoo_scratch.cnn:CNN", "mmzoo_{0}_part:Part")
    for name, text in (("hangs", "import time; time.sleep(60)"), ("late", "raise ImportError('no eyes')")):
        install(tmp_path, f"mmzoo-{name}", source.replace("{0}", name), **{f"mmzoo_{name}_part": text})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MMZOO_PLUGIN_TIMEOUT", "1")
    hangs, late = json.loads(run("doctor", "--json", code=1).stdout)["problems"]
    assert "encoder 'hangs' of plugin 'mmzoo-hangs' cannot be built: took longer than 6 s" in hangs["what"]
    assert "time.sleep(60)" in hangs["trace"], "it says where"
    assert "encoder 'late' of plugin 'mmzoo-late' cannot be built" in late["what"]


def test_doctor_works_where_torch_does_not(tmp_path, monkeypatch, configured):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    done = run("doctor", code=1)
    assert "1 problem\n" in done.stdout
    assert "torch cannot be imported: OSError: libtorch.so" in done.stdout
    assert "pip install --force-reinstall torch" in done.stdout
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    assert "torch cannot be imported: the process ended (signal 6)" in program(tmp_path, "doctor").stdout


def test_doctor_says_that_nothing_is_broken(configured, monkeypatch):
    monkeypatch.setattr(
        diagnosis.subprocess_checks, "check_libraries", lambda targets: diagnosis.subprocess_checks.LibraryResults()
    )
    assert run("doctor").stdout.endswith("nothing is broken\n")


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("MMZOO_PLUGINS", "mmzoo-nothing", "unset MMZOO_PLUGINS"),
        ("MMZOO_PLUGIN_TIMEOUT", "soon", "unset MMZOO_PLUGIN_TIMEOUT"),
        ("MMZOO_CONFIG", "CONFIG", "rm CONFIG"),
    ],
)
def test_doctor_fixes_what_stops_every_other_command(tmp_path, monkeypatch, name, value, fix):
    (tmp_path / "config.json").write_text("{")
    config = str(tmp_path / "config.json")
    monkeypatch.setenv(name, value.replace("CONFIG", config))
    monkeypatch.setattr(
        diagnosis.subprocess_checks, "check_libraries", lambda targets: diagnosis.subprocess_checks.LibraryResults()
    )
    report = diagnosis.diagnose()
    assert [problem.fixes for problem in report.problems] == [(fix.replace("rm CONFIG", f"rm {config}"),)]


def test_doctor_checks_the_hub(monkeypatch):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_):
            pass

    def check(endpoint):
        report = diagnosis.Report("", "", {})
        with monkeypatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "ENDPOINT", endpoint)
            diagnosis.check_hub(report)
        return report

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        online = check(address)
        server.shutdown()
    assert (online.hub["reached"], online.hub["said"]) == (True, "answers (401)")
    assert online.notes == []
    offline = check(address)
    assert not offline.hub["reached"]
    assert "HF_HUB_OFFLINE=1" in offline.notes[0]
    assert offline.well


def test_installed_plugins_are_listed_without_importing_them(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-bad", "raise ValueError")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mmzoo-bad" in {plugin.name for plugin in manager.list_installed_plugins()}
    assert "mmzoo_bad" not in sys.modules
