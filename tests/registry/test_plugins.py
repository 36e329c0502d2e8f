"""Test discovery: what good plugins register, and that broken ones affect nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fake_plugins import fake_entry_point

import mmzoo
from mmzoo.errors import UnknownName
from mmzoo.interfaces.kinds import HOOKS
from mmzoo.registry import discovery, hookspecs
from mmzoo.registry.manager import PluginManager


def entry(name="foo", kind="encoder", **more):
    return mmzoo.Entry(kind, name, target="foo.bar:Foo", summary="a foo", **more)


def plugin(**hooks):
    module = ModuleType("stranger")
    for name, function in hooks.items():
        setattr(module, name, mmzoo.hookimpl(function))
    return module


def loaded(*points):
    host = PluginManager()
    host.load(points)
    return host


def broken_import():
    raise ImportError("no module named 'left_pad'")


def failing_point():
    return discovery.PluginEntryPoint("bad", "bad", discovery.Distribution("mmzoo-bad"), broken_import)


def test_a_plugin_brings_entries_with_its_name_and_version():
    host = loaded(fake_entry_point("p", plugin(mmzoo_encoders=lambda: [entry()]), dist="mmzoo-foo", version="1.2"))
    found = host.get("encoder", "foo")
    assert (found.plugin, found.version) == ("mmzoo-foo", "1.2")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (failing_point(), "left_pad"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: 1 / 0), dist="mmzoo-bad"), "ZeroDivisionError"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: sys.exit(3)), dist="mmzoo-bad"), "SystemExit"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: ["nonsense"]), dist="mmzoo-bad"), "mmzoo.Entry"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: 7), dist="mmzoo-bad"), "int"),
        (fake_entry_point("bad", plugin(mmzoo_encodres=lambda: []), dist="mmzoo-bad"), "mmzoo_encodres"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: [entry(kind="fusion")]), dist="mmzoo-bad"), "fusion"),
        (fake_entry_point("bad", plugin(mmzoo_encoders=lambda: [entry("Foo Bar")]), dist="mmzoo-bad"), "Foo Bar"),
    ],
    ids=["import", "raises", "exits", "nonsense", "no list", "misspelt hook", "wrong kind", "bad name"],
)
def test_a_bad_plugin_is_remembered_and_the_rest_works(bad, message):
    good = fake_entry_point("good", plugin(mmzoo_encoders=lambda: [entry("fine")]), dist="mmzoo-good")
    host = loaded(bad, good)
    assert [e.name for e in host.registry.entries()] == ["fine"]
    assert [f.plugin for f in host.failures] == ["mmzoo-bad"]
    assert message in host.failures[0].error
    assert "Traceback" in host.failures[0].trace
    with pytest.raises(UnknownName, match="mmzoo-bad"):
        host.get("encoder", "foo")


def test_half_a_plugin_is_never_registered():
    module = plugin(mmzoo_encoders=lambda: [entry("first")], mmzoo_fusions=lambda: [entry("second", kind="encoder")])
    host = loaded(fake_entry_point("p", module, dist="mmzoo-foo"))
    assert host.registry.entries() == []
    assert not host.manager.has_plugin("mmzoo-foo:p")


def test_one_name_from_two_plugins_names_both():
    host = loaded(
        fake_entry_point("a", plugin(mmzoo_encoders=lambda: [entry()]), dist="mmzoo-a"),
        fake_entry_point("b", plugin(mmzoo_encoders=lambda: [entry()]), dist="mmzoo-b"),
    )
    assert host.get("encoder", "foo").plugin == "mmzoo-a"
    assert "mmzoo-a" in host.failures[0].error
    assert "mmzoo-b" in host.failures[0].error


def test_a_name_that_mmzoo_has_is_the_other_plugins_failure():
    host = loaded(
        fake_entry_point("a", plugin(mmzoo_encoders=lambda: [entry()]), dist="another"),
        fake_entry_point("b", plugin(mmzoo_encoders=lambda: [entry()]), dist=hookspecs.PROJECT),
    )
    assert host.get("encoder", "foo").plugin == hookspecs.PROJECT
    assert [failure.plugin for failure in host.failures] == ["another"]


def test_two_distributions_may_use_one_entry_point_name():
    host = loaded(
        fake_entry_point("plugin", plugin(mmzoo_encoders=lambda: [entry("a")]), dist="mmzoo-a"),
        fake_entry_point("plugin", plugin(mmzoo_encoders=lambda: [entry("b")]), dist="mmzoo-b"),
    )
    assert [e.name for e in host.registry.entries()] == ["a", "b"]


@pytest.mark.parametrize("wrong", ["clpi", "cliip"])
def test_an_unknown_name_is_answered_with_suggestions(wrong):
    with pytest.raises(UnknownName, match="did you mean 'clip'"):
        mmzoo.build(encoder=wrong, fusion="prefix-mlp", language_model="gpt-mini", task="caption")


def test_in_tree_plugins_come_in_through_entry_points():
    from importlib.metadata import entry_points

    points = {p.name for p in entry_points(group="mmzoo") if p.dist.name == "mmzoo"}
    assert {"scratch", "transformers", "timm", "open_clip", "fusions", "tasks", "datasets", "metrics", "recipes"} <= points


def test_listing_imports_no_torch():
    code = (
        "import sys, json, mmzoo; rows = [e.row() for e in mmzoo.entries()]; "
        "print(json.dumps([len(rows), [m for m in ('torch', 'transformers', 'timm', 'datasets') if m in sys.modules]]))"
    )
    count, heavy = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert count > 40
    assert heavy == []


@pytest.mark.parametrize(("hook", "kind"), HOOKS.items())
def test_each_hook_brings_entries_of_its_kind(hook, kind):
    host = loaded(fake_entry_point("p", plugin(**{hook: lambda: [entry(kind=kind)]}), dist="mmzoo-foo"))
    assert host.failures == []
    assert host.get(kind, "foo").kind == kind


def test_every_hook_is_documented_and_tested_here():
    here = Path(__file__).read_text()
    hooks = [name for name in dir(hookspecs) if name.startswith("mmzoo_")]
    assert len(hooks) > len(HOOKS)
    for name in hooks:
        assert getattr(hookspecs, name).__doc__, name
        assert name in HOOKS or name in here, name


def test_lifecycle_hooks_are_called(classifier, sample, tmp_path, quick, monkeypatch):
    from transformers import TrainerCallback

    from mmzoo.registry.manager import plugin_manager

    seen = []

    class Count(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append("step")

    module = plugin(
        mmzoo_model_built=lambda model: seen.append(type(model).__name__),
        mmzoo_train_callbacks=lambda recipe: [Count()],
        mmzoo_card_sections=lambda model, run: [("Colophon", "set in type")],
    )
    plugin_manager().manager.register(module)
    try:
        run = mmzoo.train(classifier, dataset=sample, output=tmp_path / "m", progress=False, training=quick)
    finally:
        plugin_manager().manager.unregister(module)
    assert seen == ["MultimodalModel", *["step"] * 4]
    assert "## Colophon\n\nset in type" in (tmp_path / "m" / "README.md").read_text()
    assert run.finished
