"""Two processes, with whole weights and with shards (FSDP2), train as one with the batches of both, over gloo; a run resumes on
another number of processes."""

import json
import logging
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launcher import WAYS, launch

import mmzoo
from mmzoo.errors import TrainingError
from mmzoo.training.callbacks import StopOnSignal
from mmzoo.training.processes import EvenBatches, accumulated


def run(jobs, folder, way=None):
    """Run jobs of `tests.helpers.processes`, one after another, in one process or in two; return their curves."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    done = launch("-m", "tests.helpers.processes", path, way=way, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(jobs), done.stderr[-3000:]
    return [json.loads(line) for line in lines], done.stderr


def job(case, output, **options):
    return {"case": case, "output": str(output), "options": options}


def check_close(one: Path, other: Path, tolerance: float):
    a, b = (mmzoo.load(folder).state_dict() for folder in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.shape == b[name].shape
        assert torch.allclose(value.float(), b[name].float(), rtol=0, atol=tolerance), name


# The options of one process, and of each of two.
COMPARED = dict.fromkeys(["plain", "several", "lora", "numbers"], ({"accumulate": 2}, {}))
COMPARED["skipped"] = {"accumulate": 4}, {"accumulate": 2}
COMPARED |= dict.fromkeys(["pairs", "skipped-pairs", "bounded-pairs"], ({"batch_size": 4}, {}))
COMPARED["cross"] = {"accumulate": 2, "precision": "bf16"}, {"precision": "bf16"}
COMPARED["q-former"] = [{"accumulate": n, "gradient_checkpointing": True} for n in (4, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_with_the_batches_of_both(way, tmp_path):
    """Also where only one process has a picture, a sound, a target of a task, or an example that can be read; and where an
    epoch does not come out even. Tasks that compare pairs see those of both."""
    ones, _ = run([job(case, tmp_path / case, **one) for case, (one, _) in COMPARED.items()], tmp_path)
    twos, _ = run([job(case, tmp_path / f"{case}-two", **two) for case, (_, two) in COMPARED.items()], tmp_path, way)
    for case, one, two in zip(COMPARED, ones, twos, strict=True):
        assert [entry["step"] for entry in one["history"]] == [entry["step"] for entry in two["history"]]
        for single, double in zip(one["history"], two["history"], strict=True):
            assert double["loss"] == pytest.approx(single["loss"], rel=1e-5, abs=1e-5), case
            assert double.get("terms") == pytest.approx(single.get("terms"), abs=1e-5), case
        assert two["skipped"] == one["skipped"]
        check_close(tmp_path / case, tmp_path / f"{case}-two", 2e-3 if case == "cross" else 2e-4)


@pytest.mark.slow
def test_a_run_resumes_on_two_processes_then_one_then_two(tmp_path):
    """With shards and without, and with data workers."""
    options = {"plain": {"epochs": 2, "workers": 1}, "stream": {"max_steps": 10}}
    wholes, _ = run([job(case, tmp_path / f"{case}-whole", accumulate=2, **own) for case, own in options.items()], tmp_path)
    stops = [("sharded", {"stop": 2}), (None, {"stop": 5, "resume": True}), ("whole", {"resume": True})]
    texts = []
    for way, more in stops:
        parts, text = run([{**job(case, tmp_path / case, **own), **more} for case, own in options.items()], tmp_path, way)
        texts.append(text)
    assert "resumed on 1 processes instead of 2: each has 2 batches in a step instead of 1" in texts[1]
    for case, whole, part in zip(options, wholes, parts, strict=True):
        assert [entry["step"] for entry in part["history"]] == [entry["step"] for entry in whole["history"]]
        losses = [entry["loss"] for entry in whole["history"]]
        assert [entry["loss"] for entry in part["history"]] == pytest.approx(losses, abs=1e-5)
        check_close(tmp_path / f"{case}-whole", tmp_path / case, 2e-4)
        launches = json.loads((tmp_path / case / "run.json").read_text())["training"]["launches"]
        assert [(each["step"], each["processes"], each["accumulate"]) for each in launches] == [(0, 2, 1), (2, 1, 2), (5, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_as_many_processes_resume_to_the_bit(way, tmp_path):
    """With dropout, which has random numbers of each process, and data workers; and a stream, which goes on by its state."""
    options = {"dropout": {"epochs": 2, "workers": 1}, "stream": {"max_steps": 6}}
    jobs = []
    for case, own in options.items():
        part = job(case, tmp_path / case, **own)
        jobs += [job(case, tmp_path / f"{case}-whole", **own), {**part, "stop": 2}, {**part, "resume": True}]
    curves, _ = run(jobs, tmp_path, way)
    for case, whole, resumed in zip(options, curves[::3], curves[2::3], strict=True):
        assert resumed == whole
        check_close(tmp_path / case, tmp_path / f"{case}-whole", 0)


def test_batches_come_out_even_and_none_is_repeated():
    batches = list(EvenBatches(range(10), 2, 4))
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [], [], []]
    assert len(EvenBatches(range(10), 2, 4)) == 8
    assert list(EvenBatches(range(3), 2, 1)) == [[0, 1], [2]]


def test_a_number_of_processes_that_cannot_share_a_step_is_refused(monkeypatch, caplog):
    launches = [{"step": 0, "processes": 3, "accumulate": 2}]
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(TrainingError, match=r"6 batches \(3 processes, 2 each\).*these numbers of processes: 1, 2, 3, 6$"):
        accumulated(1, launches)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with caplog.at_level(logging.WARNING):
        assert accumulated(1, launches) == 3
    assert "resumed on 2 processes instead of 3" in caplog.text
    assert accumulated(5, ()) == 5


def test_a_signal_that_comes_twice_to_each_process_still_saves(monkeypatch):
    """A scheduler signals all processes, the launcher forwards it, and another process may have told of it before."""
    clock = [100.0]
    monkeypatch.setattr("mmzoo.training.callbacks.time.monotonic", lambda: clock[0])
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=2, device="cpu"))
    trainer.accelerator = SimpleNamespace(gather=lambda own: torch.tensor([0, signal.SIGTERM]))
    stop, control = StopOnSignal(trainer), SimpleNamespace()
    with stop.signals_handled():
        stop.on_step_end(trainer.args, None, control)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert (stop.signal, control.should_save) == (signal.SIGTERM, True)
        clock[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
