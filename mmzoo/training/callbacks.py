"""Stop training on signals, and show its progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmzoo.common.progress import Bar, bar

SAME = 5.0  # seconds; a scheduler may signal all processes, and the launcher its own once more


class StopOnSignal(TrainerCallback):
    """Save a checkpoint and stop at the end of the step after SIGINT or SIGTERM. A second signal stops at once; among several
    processes one that does not come together with the first."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.signal, self.since = 0, 0.0  # the number of the signal that this process or another has received, and when

    @contextmanager
    def signals_handled(self) -> Iterator[None]:
        """Handle the signals during the block. Only the main thread can; in another the block runs without."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        alone = self.trainer.args.world_size == 1
        if self.signal and (alone or time.monotonic() - self.since > SAME):
            raise KeyboardInterrupt
        self._note(number)

    def _note(self, number: int) -> None:
        if number and not self.signal:
            self.signal, self.since = number, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:  # all processes must stop at the same step, or the others would wait forever
            received = torch.tensor([self.signal], device=args.device)
            self._note(int(self.trainer.accelerator.gather(received).max()))
        if self.signal:
            control.should_save = control.should_training_stop = True


def leave_process_group(worker: int) -> None:
    """Put a data worker into a process group of its own.

    A terminal and `timeout` send the signals that stop a run to the whole group. The main process needs its workers until it has
    saved a checkpoint, and ends them itself, by a signal, so that they must not ignore it.
    """
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()


class SkipStepWithoutLoss(TrainerCallback):
    """Leave the weights as they are after a step in which every example was skipped: it has no gradient, but the optimizer
    would apply its momentum and the weight decay."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.trainer.step_has_loss and not args.fp16:  # whose scaler needs gradients
            self.trainer.model.zero_grad(set_to_none=True)


class ProgressCallback(TrainerCallback):
    """Show a progress bar with the loss and, where there are validation data, the last score and the best one."""

    def __init__(self, *, shown: bool) -> None:
        self.shown, self.context = shown, ExitStack()
        self.bar: Bar | None = None
        self.loss = self.score = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = self.context.enter_context(bar("training", state.max_steps, shown=self.shown))
        self.bar.move(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # the loss curve must end with the last step
            control.should_log = True
        elif self.bar is not None:  # `on_log` shows the last step with its loss
            self.bar.move(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.4f}"
            self._show(state)

    def validating(self, step: int, done: int, count: int) -> None:
        """Show the progress of a validation, which takes place between two steps."""
        if self.bar is not None and step < (self.bar.total or 0):  # the last step is shown with its loss
            self.bar.move(step, f"validating {done}/{count}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        score, best = kwargs.get("score"), kwargs.get("best")
        if score is not None:
            self.score = f"val {score:.3g}" + (f", best {best['score']:.3g}" if best else "")
            if state.global_step < state.max_steps:
                self._show(state)

    def _show(self, state: TrainerState) -> None:
        if self.bar is not None:
            self.bar.move(state.global_step, ", ".join(filter(None, [self.loss, self.score])))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.context.close()
        self.bar = None
