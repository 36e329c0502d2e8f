"""Check a plugin as a whole: that it is in use, and what its import costs and does."""

from __future__ import annotations

from mmzoo.registry.manager import IN_USE, plugin_manager
from mmzoo.testing import probe
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import InstalledPlugin

MAX_SECONDS = 0.05
TRIES = 5


@check()
def loads(plugin: InstalledPlugin) -> None:
    """Require that every entry point in the group ``mmzoo`` is a module that imports, marks known hooks with ``mmzoo.hookimpl``,
    and returns entries whose names no other plugin uses.
    """
    plugins = [one for one in plugin_manager().plugins if one.dist == plugin.distribution]
    for one in plugins:
        expect(one.state == IN_USE, one.failure.error if one.failure else f"the plugin is not in use: {one.name}, {one.reason}")
    registered = plugin.entries or any(plugin_manager().manager.has_plugin(one.full_name) for one in plugins)
    expect(registered, "the plugin has no entry and no hook")


@check()
def listing(plugin: InstalledPlugin) -> None:
    """Require that listing is quick: in a fresh process, the module of an entry point must import in under 50 ms (the best of
    several tries) and must import neither torch nor another large library. The modules of commands must not import one either,
    so that ``--help`` is quick.
    """
    commands = sorted({_module(entry.target) for entry in plugin.entries if entry.kind == "command"})
    best: dict[str, float] = {}
    for _ in range(TRIES):
        report = probe.run([*_modules(plugin), *commands], [])
        expect(report["error"] is None, f"the import fails: {report['error']}")
        expect(not report["heavy"], f"the import loads {', '.join(report['heavy'])}; import it in the entry's own module")
        for name, seconds in report["seconds"].items():
            best[name] = min(seconds, best.get(name, seconds))
        slow = {name: seconds for name, seconds in best.items() if seconds >= MAX_SECONDS and name not in commands}
        if not slow:
            return
    times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in slow.items())
    expect(False, f"the import takes {times} at best")


@check()
def side_effects(plugin: InstalledPlugin) -> None:
    """Require that importing a plugin and the modules of its entries opens no connection, looks up no host, and writes, creates
    or removes no file outside the cache (``mmzoo.common.files.cache_folder()``). The module of an entry point must not change
    the process: environment, working directory, ``sys.path``, standard streams, recursion limit, locale, signals, random seed
    and threads.
    """
    targets = sorted({_module(entry.target) for entry in plugin.entries})
    report = probe.run(_modules(plugin), targets)
    expect(not report["events"], f"the import does: {'; '.join(report['events'])}")
    expect(not report["changed"], f"the import changes {', '.join(report['changed'])}")
    expect(report["error"] is None, f"the import fails: {report['error']}")


def _modules(plugin: InstalledPlugin) -> list[str]:
    return sorted({_module(point.value) for point in plugin.points})


def _module(target: str) -> str:
    return target.partition(":")[0]
