"""Evaluation in two processes: the numbers and errors of one, in both."""

import json
import subprocess
import sys

import pytest
import shared_work
from launcher import environment


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes has."""
    folder = tmp_path_factory.mktemp("found")
    command = [sys.executable, shared_work.__file__, folder]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", shared_work.SCENARIOS)
def test_two_processes_have_the_numbers_and_errors_of_one(name, found):
    alone = shared_work.outcome(name)
    assert [both["outcomes"][name] for both in found] == [alone, alone]
    failing = {"bad_image": "BadImage", "no_reference": "DataError", "first_error": "DataError"}
    assert alone[0] == failing.get(name, alone[0])
    assert name in failing or not isinstance(alone[0], str), alone


def test_an_error_of_one_process_is_raised_in_both(found):
    main, other = (both["errors"] for both in found)
    assert other[0].startswith("ValueError: invalid literal")
    assert main[0] == f"MmzooError: process 1 failed: {other[0]}"
    assert (main[1], other[1]) == ("MmzooError: process 1 failed: OSError: the disk", "OSError: the disk")
    assert main[2].startswith("ZeroDivisionError")
    assert other[2].startswith("MmzooError: process 0 failed: ZeroDivisionError")


def test_the_main_process_writes_and_a_claim_is_verified(found):
    assert [both["written"] for both in found] == [[1, "read-only", True, False], [0, "read-only", True, False]]


def test_a_process_stops_when_another_has_failed(found):
    main, other = (both["done"] for both in found)
    assert other == [1]
    assert main[0] == 0
    assert len(main) < 4
