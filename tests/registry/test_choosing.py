"""Test which plugins load: MMZOO_PLUGINS, disabled plugins, and what a checkpoint says about those that it needs."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from fake_plugins import GOOD, hosted, install, use_manager

import mmzoo
from mmzoo.errors import MissingPlugin, PluginWarning, SettingsError, UnknownName
from mmzoo.registry import discovery, manager, settings
from mmzoo.registry.manager import DISABLED, LEFT_OUT, PluginManager
from mmzoo.testing import tiny


def test_mmzoo_plugins_selects_the_plugins_that_load(tmp_path, monkeypatch):
    for name in ("a", "b"):
        install(tmp_path, f"mmzoo-{name}", GOOD.format(entry=f"entry-{name}"))
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(text):
        monkeypatch.setenv("MMZOO_PLUGINS", text)
        with hosted(settings.read_selection()) as host:
            return {plugin.name for plugin in host.plugins if plugin.state == "in use"}

    own = {name for name in loaded("") if name.startswith("mmzoo:")}
    assert len(own) > 8
    assert loaded("") == own
    assert loaded("mmzoo-a") == loaded(" mmzoo_A, ") == loaded("mmzoo-a:plugin") == {*own, "mmzoo-a"}
    assert loaded("mmzoo:scratch,mmzoo:tasks,mmzoo-b") == {"mmzoo:scratch", "mmzoo:tasks", "mmzoo-b"}
    assert loaded("mmzoo") == own
    with pytest.raises(UnknownName, match="there is no plugin 'mmzoo-c'; `mmzoo plugin list`"):
        loaded("mmzoo-a,mmzoo-c")
    with pytest.raises(UnknownName, match="did you mean mmzoo:scratch"):
        loaded("scratch")


def test_a_name_of_a_plugin_that_is_left_out_or_disabled_says_so(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-a", GOOD.format(entry="entry-a"))
    monkeypatch.syspath_prepend(tmp_path)
    with hosted(settings.PluginSelection(disabled=frozenset({"mmzoo-a", "mmzoo:scratch"}))):
        assert {p.name: p.state for p in manager.plugin_manager().plugins}["mmzoo-a"] == DISABLED
        assert "mmzoo_a" not in sys.modules
        with pytest.raises(
            UnknownName, match="it may come with the plugin 'mmzoo-a', which is disabled: mmzoo plugin enable mmzoo-a"
        ):
            mmzoo.build("cnn-product-lstm", encoder="entry-a")
        with pytest.raises(
            UnknownName,
            match="encoder 'cnn' comes with the plugin 'mmzoo:scratch', which is disabled: mmzoo plugin enable mmzoo:scratch",
        ):
            mmzoo.build("cnn-product-lstm")
    with hosted(settings.PluginSelection(only=frozenset({"mmzoo:recipes", "mmzoo:fusions"}))):
        assert {p.name: p.state for p in manager.plugin_manager().plugins}["mmzoo-a"] == LEFT_OUT
        with pytest.raises(UnknownName, match="MMZOO_PLUGINS leaves out mmzoo-a"):
            mmzoo.build("cnn-product-lstm", encoder="entry-a")
        with pytest.raises(UnknownName, match="'mmzoo:scratch', which MMZOO_PLUGINS leaves out: add mmzoo:scratch to it"):
            mmzoo.build("cnn-product-lstm")


def test_mmzoo_plugins_loads_a_disabled_plugin():
    selection = settings.PluginSelection(only=frozenset({"mmzoo:scratch"}), disabled=frozenset({"mmzoo:scratch"}))
    with hosted(selection):
        assert mmzoo.entries("encoder")


@pytest.mark.parametrize("text", ["{", "[]", '{"disabled": "mmzoo-a"}', '{"disabled": [1]}', "\0"])
def test_a_damaged_configuration_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setenv("MMZOO_CONFIG", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=r"config\.json"):
        settings.read_selection()


def test_where_the_configuration_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MMZOO_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert settings.config_file() == tmp_path / "mmzoo" / "config.json"
    assert settings.disable("mmzoo_A")
    assert not settings.disable("mmzoo-a")
    assert settings.read_disabled() == ["mmzoo-a"]
    assert [path.name for path in (tmp_path / "mmzoo").iterdir()] == ["config.json"], "nothing is left of writing it"
    monkeypatch.setenv("MMZOO_CONFIG", str(tmp_path / "mmzoo"))
    assert settings.enable("mmzoo-a")
    assert not settings.enable("mmzoo-a")
    assert settings.read_selection() == settings.PluginSelection()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMZOO_CONFIG", str(tmp_path / "file" / "config.json"))
    with pytest.raises(SettingsError, match="MMZOO_CONFIG names another file|cannot be read"):
        settings.disable("mmzoo-a")


@pytest.mark.parametrize("away", sorted(p.name for p in manager.list_installed_plugins() if p.is_own))
def test_each_of_mmzoos_own_plugins_can_be_disabled(away, tmp_path):
    """Check that the other plugins work without this one, and that its entries are reported as disabled."""
    with hosted(settings.PluginSelection(disabled=frozenset({away}))) as host:
        assert host.failures == []
        gone = {plugin.name: plugin for plugin in host.plugins}[away]
        assert (gone.state, gone.entries) == (DISABLED, [])
        with use_manager(whole := PluginManager()):
            whole.load(discovery.find_entry_points())
        taken = next(plugin.entries for plugin in whole.plugins if plugin.name == away)
        assert taken or away == "mmzoo:trackers", "which has hooks only"
        own = {(entry.kind, entry.name) for entry in whole.registry.entries() if entry.plugin == "mmzoo"}
        assert {(e.kind, e.name) for e in mmzoo.entries() if e.plugin == "mmzoo"} == own - {(e.kind, e.name) for e in taken}
        for entry in taken[:1]:
            with pytest.raises(UnknownName, match=f"'{away}', which is disabled: mmzoo plugin enable {away}"):
                host.get(entry.kind, entry.name)
        built = 0
        for recipe in ({"encoder": "cnn", "language_model": "lstm"}, {"encoder": "vit", "language_model": "gpt-mini"}):
            names = {**recipe, "fusion": "late-product", "task": "classify"}
            if any((kind, name) in {(e.kind, e.name) for e in taken} for kind, name in names.items()):
                continue
            parts = {kind: {"use": name, **host.get(kind, name).tiny} for kind, name in names.items()}
            mmzoo.check(**parts, pretrained=False)
            built += 1
        assert built or away in ("mmzoo:fusions", "mmzoo:tasks"), "every model needs these two"


def test_a_model_needs_no_plugin_but_those_of_its_parts(sample):
    with hosted(settings.PluginSelection(only=frozenset({"mmzoo:scratch", "mmzoo:fusions", "mmzoo:tasks"}))) as host:
        parts = {"encoder": "cnn", "fusion": "late-product", "language_model": "lstm", "task": "classify"}
        options = {kind: {"use": name, **host.get(kind, name).tiny} for kind, name in parts.items()}
        example = sample.load("test")[0]
        assert mmzoo.build(**options, seed=0).predict(image=example.image, text=example.text).label


def test_a_checkpoint_says_why_the_plugin_that_it_needs_is_not_in_use(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-a", GOOD.format(entry="entry-a"), version="1.2")
    monkeypatch.syspath_prepend(tmp_path)
    with hosted() as host:
        model = mmzoo.build(tiny("cnn-product-lstm"), encoder={"use": "entry-a"}, seed=0)
        folder = model.save(tmp_path / "model")
        assert json.loads((folder / "mmzoo.json").read_text())["plugins"]["mmzoo-a"] == "1.2"
        assert mmzoo.load(folder)
        host.check_needed({"mmzoo_a": "1.2"})
        with pytest.warns(
            PluginWarning, match=r"saved with mmzoo-a 1\.10, and 1\.2 is installed: pip install --upgrade 'mmzoo-a>=1\.10'"
        ):
            host.check_needed({"mmzoo-a": "1.10"})
    with (
        hosted(settings.PluginSelection(disabled=frozenset({"mmzoo-a"}))),
        pytest.raises(MissingPlugin, match="mmzoo plugin enable mmzoo-a"),
    ):
        mmzoo.load(folder)
    with hosted(settings.PluginSelection(only=frozenset())), pytest.raises(MissingPlugin, match="MMZOO_PLUGINS leaves out"):
        mmzoo.load(folder)
    (tmp_path / "mmzoo_a.py").write_text("raise ValueError('out of order')")
    monkeypatch.delitem(sys.modules, "mmzoo_a")
    with hosted(), pytest.raises(MissingPlugin, match=r"'mmzoo-a' 1\.2, which is installed but failed to load: .*out of order"):
        mmzoo.load(folder)


def test_the_page_lists_every_plugin_in_the_repository():
    root = Path(__file__).parents[2]
    listed = re.findall(r"^\| `(mmzoo[\w:-]+)` \|", (root / "docs" / "plugins.md").read_text(encoding="utf-8"), re.MULTILINE)
    own = [plugin.name for plugin in manager.list_installed_plugins() if plugin.is_own]
    examples = [tomllib.loads(path.read_text())["project"]["name"] for path in sorted(root.glob("examples/*/pyproject.toml"))]
    assert sorted(listed) == sorted({*own, *examples})


def test_a_plugin_that_is_disabled_is_not_checked(tmp_path, monkeypatch):
    install(tmp_path, "mmzoo-good", GOOD.format(entry="a"))
    monkeypatch.syspath_prepend(tmp_path)
    with (
        hosted(settings.PluginSelection(disabled=frozenset({"mmzoo-good"}))),
        pytest.raises(SettingsError, match="mmzoo plugin enable mmzoo-good"),
    ):
        mmzoo.testing.cases("mmzoo-good")


@pytest.mark.parametrize(("name", "similar"), [("mmzoo-nope", None), ("mmzoo-goood", "mmzoo-good"), ("tim", "mmzoo:timm")])
def test_the_prefix_mmzoo_does_not_count_as_similarity(name, similar):
    text = settings.describe_unknown_plugin(name, ["mmzoo-good", "mmzoo:timm", "mmzoo:open_clip", "mmzoo:recipes"])
    assert (f"did you mean {similar}?" if similar else "`mmzoo plugin list` shows") in text


def test_an_old_copy_of_mmzoos_metadata_hides_no_plugin(tmp_path, monkeypatch):
    info = tmp_path / "mmzoo-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmzoo\nVersion: 0.0.1\n")
    (info / "entry_points.txt").write_text("[mmzoo]\nscratch = mmzoo_scratch.plugin\n")
    before = {point.name for point in discovery.find_entry_points() if point.distribution.name == "mmzoo"}
    monkeypatch.syspath_prepend(tmp_path)
    assert {point.name for point in discovery.find_entry_points() if point.distribution.name == "mmzoo"} == before
