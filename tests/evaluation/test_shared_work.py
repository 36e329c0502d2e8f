"""Evaluation in two processes: the numbers and errors of one, in both."""

import json
import shutil
import subprocess
import sys

import pytest
import shared_work
from command_line import run
from launcher import environment, launch

from mmzoo.testing import Sample


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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, seven pictures, a table of them, and one of them with a picture that cannot be read."""
    folder = tmp_path_factory.mktemp("files")
    shared_work.classifier().save(folder / "m")
    rows = []
    for i, example in enumerate(Sample(count=7).load("test")):
        example.image.save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": example.text, "label": example.targets[0]})
    (folder / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "bad.png").write_text("no picture")
    (folder / "bad.jsonl").write_text("\n".join(map(json.dumps, [*rows[:3], {**rows[3], "image": "bad.png"}, *rows[4:]])))
    return folder


@pytest.mark.slow
def test_two_processes_print_and_record_once_what_one_does(files):
    shutil.copytree(files / "m", files / "other")
    arguments = ["--dataset", files / "good.jsonl", "--batch-size", "2"]
    alone, shared = run("evaluate", files / "m", *arguments), launch("-m", "mmzoo", "evaluate", files / "other", *arguments)
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == alone.stdout
    assert shared.stderr.count("so it does not seem to use them") == alone.stderr.count("so it does not seem to use them") == 1
    records = [json.loads((files / name / "run.json").read_text())["evaluations"] for name in ("m", "other")]
    assert [[record.pop("processes") for record in each] for each in records] == [[1], [2]]
    assert [[record.pop("seconds") > 0 for record in each] for each in records] == [[True], [True]]
    assert records[0] == records[1]


@pytest.mark.slow
def test_two_processes_predict_files_in_order_and_once(files):
    given = ["predict", files / "m", *(files / f"{i}.png" for i in range(7)), files / "bad.png", "--skip-bad", "--json"]
    alone, shared = run(*given), launch("-m", "mmzoo", *given)
    assert shared.returncode == 0, shared.stderr
    assert json.loads(shared.stdout) == json.loads(alone.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--batch-size", "2"], ["--device", "nowhere"], ["--limit", "none"]])
def test_two_processes_print_an_error_once(files, arguments):
    given = ["evaluate", files / "m", "--dataset", files / "bad.jsonl", *arguments]
    alone, shared = run(*given, code=2), launch("-m", "mmzoo", *given)
    message = alone.stderr.splitlines()[-1]
    assert message.lower().startswith("error: ")
    assert shared.returncode != 0
    assert not shared.stdout
    assert shared.stderr.count(message) == 1, shared.stderr
    assert "mmzoo/cli" not in shared.stderr
