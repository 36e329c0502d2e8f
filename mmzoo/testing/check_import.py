"""Checks of a plugin as a whole: that it is in use, and what its import costs and does."""

from __future__ import annotations

from mmzoo.registry.manager import IN_USE, plugin_manager
from mmzoo.testing import probe
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import Plugin

MAX_SECONDS = 0.05
TRIES = 5


@check()
def loads(plugin: Plugin) -> None:
    """Every entry point in the group ``mmzoo`` is a module that imports, marks known hooks with ``mmzoo.hookimpl``, and returns
    entries whose names no other plugin has."""
    theirs = [one for one in plugin_manager().plugins if one.dist == plugin.distribution]
    for one in theirs:
        expect(one.state == IN_USE, one.failure.error if one.failure else f"the plugin is not in use: {one.name}, {one.reason}")
    brings = plugin.entries or any(plugin_manager().manager.has_plugin(one.full_name) for one in theirs)
    expect(brings, "the plugin brings no entry and no hook")


@check()
def listing(plugin: Plugin) -> None:
    """Listing is quick: in a fresh process, the module that an entry point names is imported in under 50 ms (the best of several
    tries) and imports no torch or other large library; nor do the modules of its commands, whose ``--help`` is to be as quick."""
    commands = sorted({_module(entry.target) for entry in plugin.entries if entry.kind == "command"})
    best: dict[str, float] = {}
    for _ in range(TRIES):
        found = probe.run([*_modules(plugin), *commands], [])
        expect(found["error"] is None, f"the import fails: {found['error']}")
        expect(not found["heavy"], f"the import brings in {', '.join(found['heavy'])}; import it in the entry's own module")
        for name, seconds in found["seconds"].items():
            best[name] = min(seconds, best.get(name, seconds))
        slow = {name: seconds for name, seconds in best.items() if seconds >= MAX_SECONDS and name not in commands}
        if not slow:
            return
    said = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in slow.items())
    expect(False, f"the import takes {said} at best")


@check()
def side_effects(plugin: Plugin) -> None:
    """Importing a plugin and the modules of its entries opens no connection, looks no host up, and writes, makes or removes no
    file outside the cache (``mmzoo.common.files.cache_folder()``). The module that an entry point names leaves the process as it was:
    environment, working directory, ``sys.path``, standard streams, limit of recursion, locale, signals, seed and threads."""
    targets = sorted({_module(entry.target) for entry in plugin.entries})
    found = probe.run(_modules(plugin), targets)
    expect(not found["events"], f"the import does: {'; '.join(found['events'])}")
    expect(not found["changed"], f"the import changes {', '.join(found['changed'])}")
    expect(found["error"] is None, f"the import fails: {found['error']}")


def _modules(plugin: Plugin) -> list[str]:
    return sorted({_module(point.value) for point in plugin.points})


def _module(target: str) -> str:
    return target.partition(":")[0]
