"""Compare 100 training steps with a validation of 500 examples after them with the same steps alone and those predictions alone.

Both sides train the same recipe on easy-VQA from the same weights; the predictions by themselves are those of
`MultimodalModel.predict_examples` on the trained model. The clock runs from the end of the first step to the end of the training,
so building the model, opening the data and saving do not count; writing the best weights does. Both sides must predict the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.common import Ratio, Settings, alternate

TARGET = 1.05
RECIPES = ("cnn-product-lstm", "cnn-prefix-gpt")  # one that classifies and one that writes
DATASET, SPLIT = "easy-vqa", "test"
STEPS, EXAMPLES = 100, 500
BATCH = 128  # of an evaluation


def run(settings: Settings) -> list[Ratio]:
    return [_compare(recipe, settings) for recipe in settings.recipes or RECIPES]


def _compare(recipe: str, settings: Settings) -> Ratio:
    from mmzoo.data.open import load_split, open_dataset

    steps, count = settings.max_steps or STEPS, settings.limit or EXAMPLES
    examples = load_split(open_dataset(DATASET), SPLIT)
    assert isinstance(examples, Sequence)
    chosen = [examples[i] for i in range(count)]
    right: dict[str, list[float]] = {"within": [], "apart": []}

    def within() -> float:
        seconds, done = _train(recipe, steps, validation=SPLIT, evaluate_every=steps, evaluate_limit=count)
        right["within"].append(done.validation["best"]["score"])
        return seconds

    def apart() -> float:
        seconds, done = _train(recipe, steps)
        started = time.perf_counter()
        predictions = done.model.predict_examples(chosen, batch_size=BATCH)
        seconds += time.perf_counter() - started
        equal = [prediction.text in example.targets for prediction, example in zip(predictions, chosen, strict=True)]
        right["apart"].append(sum(equal) / count)
        return seconds

    seconds = alternate(within, apart, repeats=settings.repeats, warm=True)
    if recipe == RECIPES[0] and right["within"] != right["apart"]:  # whose first metric is accuracy
        raise RuntimeError(f"the two sides did not do the same: accuracy {right}")
    name = f"validation: {recipe}, {steps} steps with a validation of {count} examples / the steps and the predictions alone"
    return Ratio(name, *seconds, "s", TARGET, sides=("within training", "apart"))


def _train(recipe: str, steps: int, *, validation: str | None = None, **options: Any) -> tuple[float, Any]:
    """Train, and return the seconds from the end of the first step to the end of the training, and the run."""
    from transformers import TrainerCallback

    import mmzoo
    from mmzoo.registry.manager import plugin_manager

    times: list[float] = []

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 1:
                times.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    module = ModuleType("clock")
    module.mmzoo_train_callbacks = mmzoo.hookimpl(lambda recipe: [Note()])  # type: ignore[attr-defined]
    plugin_manager().manager.register(module)
    try:
        with tempfile.TemporaryDirectory() as folder:
            training = {"max_steps": steps, "precision": "fp32", "workers": 0, **options}
            given: dict[str, Any] = {"dataset": DATASET, "training": training, "validation": validation, "progress": False}
            done = mmzoo.train(recipe, output=Path(folder, "model"), **given)
    finally:
        plugin_manager().manager.unregister(module)
    return times[1] - times[0], done
