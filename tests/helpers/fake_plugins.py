"""Install plugins for tests as pip would: a module and its metadata in a folder that is put on the path."""

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from mmzoo.registry import discovery, manager, settings

GOOD = """
import mmzoo

@mmzoo.hookimpl
def mmzoo_encoders():
    return [mmzoo.Entry("encoder", "{entry}", target="mmzoo_scratch.cnn:CNN", summary="a CNN", tiny={{}})]
"""


def install(folder: Path, dist: str, source: str, *, version: str = "1.0", needs: tuple[str, ...] = ("mmzoo",), **modules: str):
    """Write the distribution ``dist`` with the module of its plugin, and ``modules`` beside it."""
    package = dist.replace("-", "_")
    (folder / f"{package}.py").write_text(source)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {dist}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n\nAbout it.\n")
    (info / "entry_points.txt").write_text(f"[mmzoo]\nplugin = {package}\n")


def fake_entry_point(name, module, *, dist, version="0"):
    """Return the entry point of a plugin that is not installed and whose module exists already."""
    return discovery.PluginEntryPoint(name, name, discovery.Distribution(dist, version), lambda: module)


def use_manager(other):
    """Make `plugin_manager` return another manager until the end of the block."""
    return patch.object(manager, "_current", other)


@contextmanager
def hosted(selection: settings.PluginSelection | None = None):
    """Use a manager with what is on the path now instead of the process's own."""
    host = manager.PluginManager()
    host.load(discovery.find_entry_points(), selection or settings.read_selection())
    with use_manager(host):
        yield host


def with_plugin(plugin, dist="mmzoo-bad"):
    """Use a manager like the process's own, with one more plugin, which exists only in memory."""
    host = manager.PluginManager()
    host.load([*discovery.find_entry_points(), fake_entry_point("p", plugin, dist=dist)])
    assert host.failures == []
    return use_manager(host)
