"""Plugins as strangers install them: a module and its metadata in a folder that is put on the path."""

from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def hosted(choice: settings.Choice | None = None):
    """A host with what is on the path now, in the place of the process's own."""
    host = manager.PluginManager()
    host.load(discovery.entry_points(), choice or settings.choice())
    with manager.use_manager(host):
        yield host


def with_plugin(plugin, dist="mmzoo-bad"):
    """A host like the process's own, with a plugin more that lies in memory."""
    host = manager.PluginManager()
    host.load(discovery.entry_points())
    host.load_one(manager.fake_entry_point("p", plugin, dist=dist))
    assert host.failures == []
    return manager.use_manager(host)
