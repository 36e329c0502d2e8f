"""What a check is, and what it is run on: the conformance kit's frame. The checks stand in the files beside this one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
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
from mmzoo.registry import isolation, settings
from mmzoo.registry.discovery import GROUP
from mmzoo.registry.manager import DISABLED, LEFT_OUT, plugin_manager
from mmzoo.testing.network import no_network
from mmzoo.testing.subject import Plugin, Subject

PAGE = "docs/plugin-contract.md"
LIMIT = 60


class Inapplicable(unittest.SkipTest):
    """A check that an entry cannot be put to here, and why: it needs a package or a program that is not installed.
    pytest takes it for a skip."""


@dataclass(frozen=True)
class Check:
    """A promise of the contract, and the function that holds an entry of ``kinds`` to it; no kinds: the plugin as a whole."""

    function: Callable[[Any], None]
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", "-")

    @property
    def contract(self) -> str:
        """What is promised: the function's docstring."""
        return " ".join((self.function.__doc__ or "").split())

    @property
    def documentation(self) -> str:
        return f"{PAGE}#{self.name}"


CHECKS: dict[str, Check] = {}


def check(*kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make a function a check of entries of these kinds; of none, of the plugin as a whole. It raises whatever it finds."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        made = Check(function, kinds)
        CHECKS[made.name] = made
        return function

    return register


def expect(condition: Any, happened: str) -> None:
    """
    Raises:
        AssertionError: saying what happened, if the condition does not hold.
    """
    if not condition:
        raise AssertionError(happened)


@dataclass(frozen=True)
class Case:
    """One check of one entry, or of the plugin as a whole."""

    check: Check
    subject: Any = field(compare=False)

    def __str__(self) -> str:
        return f"{self.check.name}-{self.subject.name}"

    def run(self) -> None:
        """Run the check: offline, with a cache of its own, leaving torch's random numbers as they were, and not for ever: it may
        take `LIMIT` times as long as a plugin has to be imported.

        Raises:
            ContractBroken: saying what the contract is, what happened, and where it is documented.
            Inapplicable: what the check needs is not installed.
        """
        __tracebackhide__ = True
        default = torch.get_default_dtype()
        try:
            with no_network(), own_cache(), torch.random.fork_rng(), isolation.alarm(LIMIT * isolation.read_timeout()):
                self.check.function(self.subject)
            left = torch.get_default_dtype()
            expect(left == default, f"it leaves torch's default type as {left}, which every other model is then made of")
        except (Inapplicable, KeyboardInterrupt):
            raise
        except BaseException as error:  # a stranger's code may raise anything
            raise ContractBroken(self.failure(error)) from error
        finally:
            torch.set_default_dtype(default)

    def failure(self, error: BaseException) -> str:
        plain = isinstance(error, AssertionError | MmzooError) and str(error)
        happened = str(error) if plain else describe_error(error)
        indented = "\n            ".join(happened.splitlines())
        return (
            f"{self.check.name} of {self.subject.name}\n"
            f"  contract: {self.check.contract}\n"
            f"  happened: {indented}\n"
            f"  see:      {self.check.documentation}"
        )


def cases(distribution: str) -> list[Case]:
    """Every check of every entry that an installed distribution brings, for ``pytest.mark.parametrize``:

        @pytest.mark.parametrize("case", mmzoo.testing.cases("mmzoo-foo"), ids=str)
        def test_contract(case):
            case.run()

    Raises:
        UnknownName: no such distribution is installed, or it is no plugin. SettingsError: it is disabled or left out.
    """
    plugin = _plugin(distribution)
    out = [
        found
        for found in plugin_manager().plugins
        if settings.normalise_name(found.dist) == settings.normalise_name(distribution)
    ]
    if out and all(found.state in (DISABLED, LEFT_OUT) for found in out):
        raise SettingsError(f"there is nothing to check of the plugin '{distribution}', {out[0].reason}")
    subjects = [Subject(entry) for entry in plugin.entries]
    whole = [Case(check, plugin) for check in CHECKS.values() if not check.kinds]
    return whole + [
        Case(check, subject) for subject in subjects for check in CHECKS.values() if subject.entry.kind in check.kinds
    ]


@dataclass(frozen=True)
class Result:
    """What came of a case: ``problem`` says how it failed, ``skipped`` why it could not be run; of one that passed both are
    empty."""

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
    """Run every check of every entry, one after another.

    Raises:
        UnknownName: as `cases`.
    """
    for case in cases(distribution):
        try:
            case.run()
            yield Result(case)
        except Inapplicable as reason:
            yield Result(case, skipped=str(reason))
        except ContractBroken as error:
            yield Result(case, problem=str(error))


def check_plugin(distribution: str) -> None:
    """Hold a plugin to the whole contract (docs/plugin-contract.md), each entry in its tiny form.

    Args:
        distribution: the name that pip installs it by.

    Raises:
        ContractBroken: listing every failure. UnknownName: no such distribution is installed, or it is no plugin.
    """
    __tracebackhide__ = True
    found = list(results(distribution))
    failed = [result.problem for result in found if result.problem]
    if failed:
        listed = "\n\n".join(f"{i}. {problem}" for i, problem in enumerate(failed, 1))
        raise ContractBroken(f"{distribution}: {len(failed)} of {len(found)} checks failed\n\n{listed}")


def _plugin(name: str) -> Plugin:
    try:
        found = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        known = sorted({point.dist.name for point in importlib.metadata.entry_points(group=GROUP) if point.dist})
        raise UnknownName(
            f"no distribution '{name}' is installed; those that bring plugins: {', '.join(known)}. "
            "From its folder: pip install -e ."
        ) from None
    plugin = Plugin(found.metadata["Name"])
    if not plugin.points:
        raise UnknownName(f"distribution '{name}' has no entry point in the group '{GROUP}', so it is no plugin")
    plugin_manager()
    return plugin


@cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mmzoo-testing-")


@contextlib.contextmanager
def own_cache() -> Iterator[Path]:
    """The cache is a temporary folder of this process for the length of the block, if no other was chosen."""
    chosen = os.environ.get("MMZOO_CACHE") or _cache().name
    with patch.dict(os.environ, {"MMZOO_CACHE": chosen}):
        yield Path(chosen)
