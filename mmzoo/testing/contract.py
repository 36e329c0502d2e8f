"""Define checks and the cases that run them. The checks themselves are in the other files of this folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
import tempfile
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mmzoo.common.sanitize import describe_error
from mmzoo.errors import ContractBroken, MmzooError, SettingsError, UnknownName
from mmzoo.registry import isolation
from mmzoo.registry.discovery import GROUP
from mmzoo.registry.manager import DISABLED, LEFT_OUT, plugin_manager
from mmzoo.registry.settings import normalise_name
from mmzoo.testing.subject import InstalledPlugin, Subject

PAGE = "docs/plugin-contract.md"
LIMIT = 60  # times the time limit for importing a plugin


class Inapplicable(unittest.SkipTest):
    """Report that a check cannot run because a package or program is not installed. pytest counts it as skipped."""


@dataclass(frozen=True)
class Check:
    """Hold one promise of the contract and the function that checks it, for entries of ``kinds`` or, without kinds, a plugin."""

    function: Callable[[Any], None]
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", "-")

    @property
    def contract(self) -> str:
        """Return the promise: the function's docstring on one line."""
        return " ".join((self.function.__doc__ or "").split())

    @property
    def documentation(self) -> str:
        return f"{PAGE}#{self.name}"


CHECKS: dict[str, Check] = {}


def check(*kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function, which raises an error on failure, as a check of entries of these kinds; without kinds, of a plugin."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        registered = Check(function, kinds)
        CHECKS[registered.name] = registered
        return function

    return register


def expect(condition: Any, happened: str) -> None:
    """Raise an `AssertionError` with the text ``happened`` if a condition is false."""
    if not condition:
        raise AssertionError(happened)


@dataclass(frozen=True)
class Case:
    """Combine one check with one entry, or with a plugin as a whole."""

    check: Check
    subject: Any = field(compare=False)

    def __str__(self) -> str:
        return f"{self.check.name}-{self.subject.name}"

    def run(self) -> None:
        """Run the check offline, with its own cache, and with a time limit of `LIMIT` times the limit for importing a plugin.

        The state of torch's random number generator is restored afterwards.

        Raises:
            ContractBroken: with the contract, what happened, and where it is documented.
            Inapplicable: what the check needs is not installed.
        """
        __tracebackhide__ = True
        default = torch.get_default_dtype()
        try:
            with no_network(), own_cache(), torch.random.fork_rng(), isolation.alarm(LIMIT * isolation.read_timeout()):
                self.check.function(self.subject)
            changed = torch.get_default_dtype()
            expect(changed == default, f"it changes torch's default dtype to {changed}, which affects every later model")
        except (Inapplicable, KeyboardInterrupt):
            raise
        except BaseException as error:  # a plugin's code may raise anything
            raise ContractBroken(self.failure(error)) from error
        finally:
            torch.set_default_dtype(default)

    def failure(self, error: BaseException) -> str:
        plain = isinstance(error, AssertionError | MmzooError) and str(error)
        happened = "\n            ".join((str(error) if plain else describe_error(error)).splitlines())
        title = f"{self.check.name} of {self.subject.name}\n  contract: {self.check.contract}"
        return f"{title}\n  happened: {happened}\n  see:      {self.check.documentation}"


def cases(distribution: str) -> list[Case]:
    """List every check of every entry of an installed distribution, for ``pytest.mark.parametrize``:

        @pytest.mark.parametrize("case", mmzoo.testing.cases("mmzoo-foo"), ids=str)
        def test_contract(case):
            case.run()

    Raises:
        UnknownName: no such distribution is installed, or it is not a plugin.
        SettingsError: the plugin is disabled or left out.
    """
    plugin = _plugin(distribution)
    plugins = [one for one in plugin_manager().plugins if normalise_name(one.dist) == normalise_name(distribution)]
    if plugins and all(one.state in (DISABLED, LEFT_OUT) for one in plugins):
        raise SettingsError(f"the plugin '{distribution}' cannot be checked: it is {plugins[0].reason}")
    whole = [Case(check, plugin) for check in CHECKS.values() if not check.kinds]
    subjects = map(Subject, plugin.entries)
    return whole + [Case(check, subject) for subject in subjects for check in CHECKS.values() if subject.kind in check.kinds]


@dataclass(frozen=True)
class Result:
    """Hold the result of a case: ``problem`` describes a failure, ``skipped`` why it did not run; both are empty on success."""

    case: Case
    problem: str = ""
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        entry = getattr(self.case.subject, "entry", None)
        return {
            "check": self.case.check.name,
            "kind": entry.kind if entry else None,
            "name": entry.name if entry else None,
            "passed": not self.problem and not self.skipped,
            "skipped": self.skipped or None,
            "problem": self.problem or None,
            "contract": self.case.check.contract,
            "documentation": self.case.check.documentation,
        }


def results(distribution: str) -> Iterator[Result]:
    """Run every check of every entry and yield the results; raise the errors of `cases`."""
    for case in cases(distribution):
        try:
            case.run()
            yield Result(case)
        except Inapplicable as reason:
            yield Result(case, skipped=str(reason))
        except ContractBroken as error:
            yield Result(case, problem=str(error))


def check_plugin(distribution: str) -> None:
    """Check an installed distribution against the whole contract (docs/plugin-contract.md), each entry in its tiny form.

    Raises:
        ContractBroken: listing every failure.
        UnknownName, SettingsError: as `cases`.
    """
    __tracebackhide__ = True
    outcomes = list(results(distribution))
    if failed := [result.problem for result in outcomes if result.problem]:
        listed = "\n\n".join(f"{i}. {problem}" for i, problem in enumerate(failed, 1))
        raise ContractBroken(f"{distribution}: {len(failed)} of {len(outcomes)} checks failed\n\n{listed}")


def _plugin(name: str) -> InstalledPlugin:
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        known = ", ".join(sorted({point.dist.name for point in importlib.metadata.entry_points(group=GROUP) if point.dist}))
        fix = f"installed plugins: {known}. From its folder: pip install -e ."
        raise UnknownName(f"no distribution '{name}' is installed; {fix}") from None
    plugin = InstalledPlugin(distribution.metadata["Name"])
    if not plugin.points:
        raise UnknownName(f"distribution '{name}' has no entry point in the group '{GROUP}', so it is not a plugin")
    return plugin


@cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mmzoo-testing-")


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Make any attempt to connect or to look up a host raise an error within the block."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("the network is blocked in this test")

    with patch.object(socket.socket, "connect", refuse), patch.multiple(socket, getaddrinfo=refuse, create_connection=refuse):
        yield


@contextlib.contextmanager
def own_cache() -> Iterator[Path]:
    """Use a temporary cache folder of this process within the block, unless ``MMZOO_CACHE`` is set."""
    chosen = os.environ.get("MMZOO_CACHE") or _cache().name
    with patch.dict(os.environ, {"MMZOO_CACHE": chosen}):
        yield Path(chosen)
