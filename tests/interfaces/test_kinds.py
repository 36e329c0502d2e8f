"""The table of kinds says what can be registered, and mmzoo.api what plugins may rely on."""

import inspect
import subprocess
import sys

import pytest

from mmzoo import api
from mmzoo.interfaces.kinds import HOOKS, KINDS, PARTS
from mmzoo.registry import hookspecs


def test_each_kind_has_a_documented_hook_and_a_base_class():
    for hook, name in HOOKS.items():
        assert inspect.getdoc(getattr(hookspecs, hook)), hook
        base = KINDS[name].base_class()
        assert (base is None) == (name in ("recipe", "command"))
        if base is not None:
            assert getattr(api, base.__name__) is base, f"plugins cannot import {base.__name__}"
    assert PARTS == ("encoder", "fusion", "language_model", "task")


@pytest.mark.parametrize("name", sorted(api._NAMES))
def test_every_name_of_the_interface_of_plugins_can_be_imported(name):
    assert getattr(api, name) is not None
    assert name in dir(api)


def test_hooks_can_be_imported_without_torch():
    code = "import sys, mmzoo, mmzoo.interfaces.kinds; from mmzoo.api import Entry, hookimpl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there_is_no_name():
    with pytest.raises(AttributeError, match="no attribute 'Fision'"):
        api.Fision  # noqa: B018
