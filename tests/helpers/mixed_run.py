"""Train on mixed data in one of several processes, and note the examples of each step: ``python mixed_run.py FOLDER OPTIONS``.

OPTIONS is JSON: the arguments of `mmzoo.train`, ``log``, the name of the folder of the notes, and ``kill``, the step at which the
processes kill themselves.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import mmzoo
from mmzoo.testing import tiny
from mmzoo.training.trainer import MultimodalTrainer

RECIPE = {"encoder": "cnn", "fusion": "late-concat", "language_model": "lstm", "task": "classify"}


def recipe():
    return tiny(mmzoo.Recipe.of(RECIPE), task={"use": "classify", "dropout": 0.3}, encoder={"train": "full"})


def main(folder: str, options: str) -> None:
    arguments = json.loads(options)
    log, kill = Path(folder) / arguments.pop("log"), arguments.pop("kill", None)
    log.mkdir(exist_ok=True)
    compute_loss = MultimodalTrainer.compute_loss

    def noting(self, model, inputs, *more, **keywords):
        if self.state.global_step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        with (log / f"{self.state.global_step:03}-{self.args.process_index}").open("a") as file:
            file.write("".join(f"{name}\n" for name in inputs["names"]))
        return compute_loss(self, model, inputs, *more, **keywords)

    MultimodalTrainer.compute_loss = noting
    torch.set_num_threads(1)
    mmzoo.train(recipe(), output=Path(folder) / arguments.pop("output"), progress=False, **arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
