"""`mmzoo plugin new`: what it writes installs, passes its own tests and its own linter; what it refuses."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import run

from mmzoo.errors import BadPlugin
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry.manager import reset
from mmzoo.scaffold import package_of

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


def python(*arguments, path, cwd):
    environment = {"PYTHONPATH": ":".join([str(path), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1", "HOME": str(cwd)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plugin with an entry of each kind, and the folder that pip put it in."""
    folder = tmp_path_factory.mktemp("new") / "foo"
    printed = run("plugin", "new", "mmzoo-foo", "--kind", ",".join(KINDS), "--output", folder).stdout
    site = folder.parent / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q", "--target", site, folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder, site, printed


def test_it_passes_its_own_tests(made, monkeypatch, pytester):
    """But for those that take seconds: importing torch in a new process, and compiling."""
    folder, site, _ = made
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(folder)
    reset()
    try:
        done = pytester.runpytest_inprocess(folder, "-q", "-k", "not compiled and not side-effects and not partners")
    finally:
        reset()
    outcomes = done.parseoutcomes()
    assert outcomes.pop("passed") > 60
    assert outcomes.keys() <= {"deselected"}


@pytest.mark.slow
def test_in_a_new_environment_install_and_pytest_pass_at_once(made, tmp_path):
    folder, _, _ = made
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    outside = [*filter(None, sys.path), str(ROOT), str(ROOT / "plugins")]  # mmzoo and what it needs, pip among it
    (site / "outside.pth").write_text("\n".join(outside))
    for arguments in (["pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", "."], ["pytest", "-q"]):
        command = [environment / "bin" / "python", "-m", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""})
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_brings_an_entry_of_each_kind_and_imports_no_torch(made):
    folder, site, _ = made
    code = "import sys, json, mmzoo; print(json.dumps([[e.row() for e in mmzoo.entries()], 'torch' in sys.modules]))"
    rows, torch = json.loads(python("-c", code, path=site, cwd=folder).stdout)
    assert [row["kind"] for row in rows if row["plugin"] == "mmzoo-foo"] == list(KINDS)
    assert not torch


def test_it_is_as_its_own_linter_wants_it(made):
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "--no-cache", "."], cwd=made[0], capture_output=True)
        assert done.returncode == 0, done.stdout.decode()


def test_it_can_be_published(made):
    folder, _, printed = made
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["mmzoo"] == {"mmzoo_foo": "mmzoo_foo.plugin"}
    assert (folder / project["readme"]).is_file()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (folder / ".github" / "workflows" / "test.yml").is_file()
    assert printed.endswith(f'next:\n  cd {folder}\n  pip install -e ".[test]"\n  pytest\n  mmzoo plugin check mmzoo-foo\n')


def test_an_entry_whose_name_is_taken_has_its_kind_behind_it(tmp_path):
    run("plugin", "new", "mmzoo-cnn", "--kind", "encoder,fusion", "--output", tmp_path / "p")
    written = (tmp_path / "p" / "mmzoo_cnn" / "plugin.py").read_text()
    assert '"cnn-encoder"' in written
    assert '"cnn",' in written
    run("plugin", "new", "mmzoo-list", "--kind", "command", "--output", tmp_path / "q")
    assert '"list-command"' in (tmp_path / "q" / "mmzoo_list" / "plugin.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-foo"], "not a valid name of a distribution"),
        (["mmzoo foo"], "not a valid name of a distribution"),
        (["../foo"], "not a valid name of a distribution"),
        (["3d"], "try 'mmzoo-3d'"),
        (["class"], "try 'mmzoo-class'"),
        (["json"], "exists already"),
        (["mmzoo"], "exists already"),
        (["mmzoo-foo", "--kind", "encoder,fusoin"], "did you mean 'fusion'?"),
        (["mmzoo-foo", "--kind", "gizmo"], "there are: encoder"),
    ],
)
def test_what_is_refused_leaves_nothing(arguments, said, tmp_path):
    assert said in run("plugin", "new", *(["--"] if arguments[0] == "-foo" else []), *arguments, code=2, cwd=tmp_path).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_stays_as_it_is(tmp_path):
    (tmp_path / "mmzoo-foo").mkdir()
    refused = run("plugin", "new", "mmzoo-foo", code=2, cwd=tmp_path).stderr
    assert "mmzoo-foo exists; name a new folder: --output mmzoo-foo/mmzoo-foo" in refused
    assert list((tmp_path / "mmzoo-foo").iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("mmzoo-foo", "mmzoo_foo"), ("Mmzoo.Foo--bar", "mmzoo_foo_bar"), ("f0", "f0")])
def test_the_package_of_a_distribution(name, package):
    assert package_of(name) == package


def test_a_name_of_more_than_a_hundred_letters_is_refused():
    with pytest.raises(BadPlugin, match="not a valid name of a distribution"):
        package_of("a" * 101)
