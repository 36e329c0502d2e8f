"""Every entry of this distribution keeps the contract that a stranger's is held to (`mmzoo.testing`), tiny and offline."""

import pytest

from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import cases

# Minutes in all: compiling, every library's import in a new process, and pairs of parts as in test_combinations.py.
SLOW = {"compiled", "side-effects", "partners"}
COMBINED = {"fusion": {"gradients", "batches", "save-and-load"}, "language_model": {"gradients", "batches"}}


def marked(case):
    slow = case.check.name in SLOW or case.check.name in COMBINED.get(case.subject.kind, ())
    return pytest.param(case, marks=[pytest.mark.slow] if slow else [], id=str(case))


def test_every_plugin_loads():
    assert plugin_manager().failures == []


@pytest.mark.parametrize("case", map(marked, cases("mmzoo")))
def test_entry(case, drawings, monkeypatch):
    if case.subject.name == "dataset-openmoji":
        monkeypatch.setenv("MMZOO_CACHE", str(drawings))
    case.run()
