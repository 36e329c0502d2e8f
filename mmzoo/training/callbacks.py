"""Stop on signals, and show progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmzoo.common.progress import Bar, bar


class Stop(TrainerCallback):
    """SIGINT and SIGTERM save a checkpoint at the end of the step and stop; a second one stops at once."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.asked = 0  # the signal's number

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:  # all stop at the same step, or the rest would wait for ever
            heard = torch.tensor(self.asked, device=args.device)
            self.asked = int(self.trainer.accelerator.gather(heard.unsqueeze(0)).max())
        if self.asked:
            control.should_save = control.should_training_stop = True


class ProgressCallback(TrainerCallback):
    """A live bar with the loss."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.context: Any = None
        self.bar: Bar | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.context = bar("training", state.max_steps, shown=self.shown)
        self.bar = self.context.__enter__()
        self.bar.move(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # what is said of a run at its end is the loss of its end
            control.should_log = True
        elif self.bar is not None:  # the last step is shown once, with its loss
            self.bar.move(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.move(state.global_step, f"loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
            self.context = self.bar = None
