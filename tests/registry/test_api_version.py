"""Test the versioned API: the version that a plugin states, additions and deprecations."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import surface
from fake_plugins import GOOD, hosted, install, with_plugin

import mmzoo
from mmzoo.registry import api_version


def test_a_plugin_states_the_api_version_that_it_was_written_for(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-a", "MMZOO_API = '1.0'\n" + GOOD.format(entry="a"))
    install(tmp_path, "mmzoo-b", GOOD.format(entry="b"))
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host, monkeypatch.context() as later:
        assert host.failures == []
        assert {plugin.api for plugin in host.plugins if plugin.is_own or plugin.name in ("mmzoo-a", "mmzoo-b")} == {"1.0"}
        later.setattr(api_version, "API_VERSION", "1.7")
        with hosted() as newer:
            assert newer.failures == [], "additions break no plugin"
        later.setattr(api_version, "API_VERSION", "2.0")
        with hosted() as other:
            assert {failure.plugin for failure in other.failures} >= {"mmzoo-a", "mmzoo-b"}
    assert mmzoo.API_VERSION == api_version.API_VERSION


def test_a_hook_that_was_written_before_an_argument_came_is_called_without_it(classifier):
    seen = []

    class Old:
        @mmzoo.hookimpl
        def mmzoo_model_built(self):
            seen.append("built")

        @mmzoo.hookimpl
        def mmzoo_card_sections(self, run):
            return [("Old", "still here")]

    with with_plugin(Old()):
        assert "still here" in mmzoo.build(classifier, seed=0).card()
    assert seen == ["built"]


def test_a_deprecation_names_the_replacement_and_the_version_that_removes_it():
    def old():
        api_version.warn_deprecated("mmzoo.old", use="mmzoo.new", since="1.3", removed="2.0")

    with pytest.warns(DeprecationWarning, match="mmzoo.old") as warned:
        old()
    assert warned[0].filename == __file__
    text = "mmzoo.old is deprecated since version 1.3 of mmzoo's plugin API and will be removed in 2.0; use mmzoo.new"
    assert str(warned[0].message) == text
    for removed in ("1.3", "1.4", "2.1"):
        with pytest.raises(ValueError, match=r"2\.0 at the earliest"):
            api_version.warn_deprecated("it", use="that", since="1.3", removed=removed)


def test_the_public_surface_is_unchanged():
    """Review the difference: a line that is removed or changed breaks plugins, and needs a deprecation first."""
    assert surface.surface() == surface.FILE.read_text(encoding="utf-8"), "python tests/helpers/surface.py rewrites it"


def test_the_examples_use_only_public_names():
    """Check that the examples use public names only, since the rest may change in any version."""
    lines = surface.FILE.read_text(encoding="utf-8").splitlines()
    public = {re.split(r"[ (:]", re.sub("^(class|def) ", "", line))[0] for line in lines if not line.startswith(" ")}
    public |= {name.rpartition(".")[0] for name in public}  # the modules
    used = set()
    examples = Path(__file__).parents[2] / "examples"
    for path in (*examples.glob("*/mmzoo_*/*.py"), *examples.glob("*/tests/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mmzoo":
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert "mmzoo.api.Encoder" in used
    assert sorted(used - public) == []


def test_hooks_have_no_argument_that_a_plugin_must_take():
    """Check that arguments can be passed by name, so that a hook may omit them and a new one breaks no plugin."""
    for name, hook in inspect.getmembers(mmzoo.registry.hookspecs, inspect.isfunction):
        if name.startswith("mmzoo_"):
            kinds = {parameter.kind for parameter in inspect.signature(hook).parameters.values()}
            assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}, name
