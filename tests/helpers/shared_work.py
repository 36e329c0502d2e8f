"""Evaluate tiny models in each of two processes: ``python shared_work.py FOLDER`` writes FOLDER/RANK.json."""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from torch import multiprocessing

import mmzoo
from mmzoo.common import processes
from mmzoo.errors import CheckpointError, DataError
from mmzoo.evaluation import run
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny

COLOURS = list(Sample.COLOURS)
MIX = {"encoders": {"image": "cnn", "audio": "log-mel-gru"}, "fusion": "late-concat", "language_model": "lstm"}
TASKS = {"colour": {"use": "classify", "labels": COLOURS}, "amount": {"use": "regress", "mean": [0.0], "scale": [1.0]}}
PAIRS = {"encoder": "cnn", "fusion": "none", "language_model": "bag-of-words", "task": "contrastive"}


class Rows(mmzoo.Dataset):
    """Provide the examples of `Sample`, changed by a function of the number and the example."""

    def __init__(self, change=lambda number, example: example, **sample):
        super().__init__(None)
        self.rows = [change(i, example) for i, example in enumerate(Sample(**sample).load("test"))]

    def splits(self):
        return ["test"]

    def load(self, split):
        return self.rows


def classifier():
    recipe = tiny("cnn-product-lstm")
    return mmzoo.build(recipe, task={**recipe.task.options, "use": "classify", "labels": COLOURS}, seed=1)


def evaluated(model, dataset, **options):
    """The scores and every number of the predictions."""
    found = mmzoo.evaluate(model, dataset=dataset, batch_size=3, progress=False, **options)
    record = found.to_dict()
    del record["seconds"], record["processes"]
    return [record, repr(found.predictions), found.skipped_examples, model.provenance.run["evaluations"][-1]["fingerprint"]]


def classify():
    return evaluated(classifier(), Rows())


def one_example():
    return evaluated(classifier(), Rows(count=1), controls=())


def regress():
    recipe = tiny("cnn-product-lstm", task={"use": "regress"})
    model = mmzoo.build(recipe, task={"mean": [0.0], "scale": [1.0]}, seed=1)
    return evaluated(model, Rows(numbers=True), metrics=["mae", "spearman"])


def write():
    model = mmzoo.build(tiny("cnn-prefix-gpt"), seed=1)
    return evaluated(model, Rows(), metrics=["bleu-1", "exact-match"], scores=True, num_beams=2)


def retrieve():
    return evaluated(mmzoo.build(tiny(mmzoo.Recipe.of(PAIRS)), seed=1), Rows())


def several():
    def change(number, example):
        targets = {"colour": example.targets} | ({"amount": (str(number / 4),)} if number else {})
        inputs = {**example.inputs, "audio": ()} if number == 5 else example.inputs
        return Example(example.id, text=example.text, targets=targets, inputs=inputs)

    model = mmzoo.build(tiny(mmzoo.Recipe.of({**MIX, "tasks": TASKS})), seed=1)
    return evaluated(model, Rows(change), controls=["shuffled", "blanked:audio", "missing:image", "shuffled:text"])


def damaged(number, example):
    """Damage the example of the second batch, which the second process has."""
    return example.with_inputs("image", [b"none"]) if number == 3 else example


def bad_image():
    return evaluated(classifier(), Rows(damaged))


def skipped():
    return evaluated(classifier(), Rows(damaged), skip_bad=True)


def no_reference():
    return evaluated(classifier(), Rows(lambda number, example: replace(example, targets=()) if number == 7 else example))


def scored_without_interval():
    from mmzoo.evaluation.controls import make_conditions
    from mmzoo.evaluation.scoring import metrics_of, score_examples

    model, examples, done = classifier(), Rows().load("test"), []
    conditions = make_conditions(examples, ["blanked"], seed=0, modalities=["image"])
    options = {"batch_size": 3, "resamples": 0, "advance": lambda count, name: done.append(count)}
    results = score_examples(model, examples, metrics_of(model), conditions, **options)
    if processes.is_main():
        assert sum(done) == 16, done
    scores = [score for result in results.values() for score in result.scores.values()]
    assert all(score.low == score.value == score.high for score in scores)
    return [score.value for score in scores]


def first_error():
    """Fail with the fourth piece at once and with the third later; the error is that of the third."""

    def work(number):
        if number in (2, 3):
            raise DataError(f"piece {number}")
        return number

    return processes.share(range(9), work)


SCENARIOS = {f.__name__: f for f in (classify, one_example, regress, write, retrieve, several, bad_image, skipped, no_reference)}
SCENARIOS |= {f.__name__: f for f in (scored_without_interval, first_error)}


def outcome(name):
    """The result of a scenario, or its error, as JSON has it."""
    try:
        return json.loads(json.dumps(SCENARIOS[name](), default=str))
    except mmzoo.errors.MmzooError as error:
        return [type(error).__name__, str(error)]


def only_here():
    """An error that only the second process has, in the work and beside it, and one in the main process."""
    found, own = [], int(os.environ["RANK"])
    for where, rank in (("work", 1), ("beside", 1), ("once", 0)):
        try:
            with processes.together():
                if where == "beside" and own == rank:
                    raise OSError("the disk")
                if where == "once":
                    processes.once(lambda: 1 / 0)
                processes.share(["1", "none" if where == "work" else "2"], int)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def pieces_done():
    """The pieces that a process works on while the second one fails with its first."""
    done = []

    def work(number):
        done.append(number)
        if number == 1:
            raise DataError("stop")
        time.sleep(0.3)

    with suppress(DataError):
        processes.share(range(8), work)
    return done


def written(folder):
    """How often each process writes a record, the error of one that cannot be written, and whether the record is reproduced."""
    writes, write = [], run.update_run

    def refuse(*arguments):
        raise CheckpointError("read-only")

    with patch.object(run, "update_run", lambda *arguments: writes.append(write(*arguments))):
        mmzoo.evaluate(folder, dataset=Rows(), progress=False)
    with patch.object(run, "update_run", refuse):
        problem = mmzoo.evaluate(folder, dataset=Rows(), progress=False).unrecorded
    copies = [mmzoo.verify(folder, dataset=Rows(**options), progress=False) for options in ({}, {"count": 7})]
    return [len(writes), problem, *(copy.reproduced for copy in copies)]


def work(rank, folder, port):
    """Set what torchrun does, and do all."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    result = {"outcomes": {name: outcome(name) for name in SCENARIOS}, "errors": only_here(), "done": pieces_done()}
    result["written"] = written(Path(folder, "model"))
    Path(folder, f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    classifier().save(Path(sys.argv[1], "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(work, (sys.argv[1], port), nprocs=2, start_method="fork")  # which imports torch once
