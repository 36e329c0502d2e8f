"""Run the steps of the demo: train a model and its blind control, measure both, ask a fresh process, write the report."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from mmzoo.api import (
    CHECKPOINTS,
    CheckpointError,
    Metric,
    MultimodalModel,
    PartConfig,
    Prediction,
    TrainingError,
    environment,
    evaluate,
    input_key,
    load,
    measure,
    open_dataset,
    read_recipe,
    resolve,
    train,
    write_atomically,
)
from mmzoo_demo import report
from mmzoo_demo.ask import answers, in_fresh_process

DATASET = "easy-vqa"
BLIND_EPOCHS = 3  # without pictures there is little to learn
HELD_OUT, VALIDATED = 0.05, 500  # the share of the training examples for validation, and how many of them are used
QUICK_LIMIT, QUICK_EPOCHS = 1000, 6
ASKED = 256
MODEL, BLIND = "model", "blind"
IMAGES, REPORT, RECORD = "images", "report.html", "demo.json"
ROWS = {
    "model": "the model",
    "shuffled": "the model, images shuffled",
    "blanked": "the model, images blanked",
    "blind": "the same recipe, trained blind",
    "majority": "always the commonest answer",
}


class Stopped(Exception):
    """Report that a signal stopped training, which can be resumed."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(signal, step)
        self.signal, self.step = signal, step


@dataclass(frozen=True)
class Settings:
    """Hold the user's choices; a demo must be resumed with the same."""

    recipe: str
    epochs: int | None = None
    quick: bool = False

    def command(self, output: Path) -> str:
        """Return the command that repeats the demo."""
        words = ["mmzoo", "demo", "--output", str(output), "--recipe", self.recipe]
        words += [] if self.epochs is None else ["--epochs", str(self.epochs)]
        words += ["--quick"] if self.quick else []
        return shlex.join(words)

    def train_options(self, role: str) -> dict[str, Any]:
        """Return the options that override the recipe's ``training``."""
        epochs: float = self.epochs or (QUICK_EPOCHS if self.quick else read_recipe(self.recipe).training.epochs)
        options: dict[str, Any] = {"epochs": epochs, **({"log_every": 2} if self.quick else {})}
        if role == MODEL:
            options["evaluate_limit"] = VALIDATED
        else:
            options |= {"epochs": min(epochs, BLIND_EPOCHS), "blank_images": True}
        return options


@dataclass
class Demo:
    """Run a demo in the folder ``output``, step by step; ``record`` is all that is known of it, stored in ``demo.json``."""

    output: Path
    settings: Settings
    say: Callable[..., None]
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = PartConfig(use=DATASET, **({"limit": QUICK_LIMIT} if self.settings.quick else {}))
        self.models: dict[str, MultimodalModel] = {}

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Prepare the output folder, or refuse it.

        Raises:
            TrainingError: it already holds a demo, or none that can be resumed.
            UnknownName, BadRecipe: the recipe.
        """
        read_recipe(self.settings.recipe)
        if resume and overwrite:
            raise TrainingError("--resume continues the demo in the folder, and --overwrite replaces it; choose one")
        if self.output.exists() and not self.output.is_dir():
            raise TrainingError(f"{self.output} is a file; name a folder")
        before = _read(self.output / RECORD)
        if resume:
            if before is None:
                raise TrainingError(f"{self.output} holds no demo to resume; leave out --resume to start anew")
            if before["settings"] != asdict(self.settings):
                command = Settings(**before["settings"]).command(self.output)
                raise TrainingError(f"{self.output}: was started with other options; resume with:  {command} --resume")
            self.record = {**before, "finished": False}
            return
        taken = [name for name in (MODEL, BLIND, IMAGES, REPORT, RECORD) if (self.output / name).exists()]
        if taken and not overwrite:
            more = "; --resume continues it" if before is not None and not before["finished"] else ""
            raise TrainingError(f"{self.output} already holds {taken[0]}; name another folder, or use --overwrite{more}")
        self.record = {
            "settings": asdict(self.settings),
            "command": self.settings.command(self.output),
            "finished": False,
            "trained": [],
            "seconds": {},
            "paths": {
                **{name: str(self.output / name) for name in (MODEL, BLIND, IMAGES)},
                "report": str(self.output / REPORT),
                "record": str(self.output / RECORD),
            },
            "versions": environment(),
        }
        self._keep()

    def train(self) -> None:
        """Train the model, then its blind control.

        Raises:
            Stopped: by a signal. Whatever `mmzoo.train` raises.
        """
        source = open_dataset(self.source)
        for split in ("train", "test"):
            examples = source.load(split)
            self.record[split] = {
                "questions": len(examples),
                "pictures": len({input_key(example.image) for example in examples}),
            }
        self.say(f"1. Train {self.settings.recipe} on {DATASET}: {self._size('train')}")
        self._train(MODEL, "train")
        self.say()
        self.say("2. Train its blind control: the same recipe, every picture blank, so only questions can be learned")
        self._train(BLIND, "train_blind")

    def _train(self, role: str, phase: str) -> None:
        folder = self.output / role
        if role in self.record["trained"]:
            self.models[role] = load(folder)
            self.say(f"   was trained before: {folder}")
            return
        unfinished = phase in self.record["seconds"] and _has_checkpoint(folder)
        with self._timed(phase, go_on=unfinished):
            run = train(
                self.settings.recipe,
                dataset=self.source,
                output=folder,
                resume=unfinished,
                overwrite=not unfinished,
                training=self.settings.train_options(role),
                validation=HELD_OUT if role == MODEL else None,
            )
        if not run.finished:
            raise Stopped(run.signal, run.steps)
        self.models[role] = run.model
        self.record["trained"].append(role)
        self._keep()
        facts = run.model.provenance.run["training"]
        size = (folder / "model.safetensors").stat().st_size
        last = f", last loss {run.history[-1]['loss']:.4f}" if run.history else ""
        if run.validation and (best := run.validation["best"]):
            last += f", best {run.validation['metric']} {best['score']:.4f} at step {best['step']} on held-out training examples"
        seconds = self.record["seconds"][phase]
        self.say(f"   {run.steps:,} steps in {seconds:.0f} s on {facts['device']}{last}; {size / 1e6:.1f} MB saved")

    def _size(self, split: str) -> str:
        size = self.record[split]
        return f"{size['questions']:,} questions about {size['pictures']:,} pictures"

    def measure(self) -> None:
        """Score both on the official test split, and the commonest training answer for comparison."""
        self.say()
        self.say(f"3. Measure both on the test split: {self._size('test')} not seen in training")
        device = "cuda" if torch.cuda.is_available() else None
        with self._timed("measure"):
            sighted = evaluate(self.output / MODEL, dataset=self.source, device=device)
            blind = evaluate(self.output / BLIND, dataset=self.source, controls=("blanked",), device=device)
            metric = next(iter(sighted.scores))
            commonest, constant = self._majority(metric)
        self.predictions = sighted.predictions
        scores = {
            "model": sighted.scores[metric],
            "shuffled": sighted.controls["shuffled"][metric],
            "blanked": sighted.controls["blanked"][metric],
            "blind": blind.controls["blanked"][metric],
            "majority": constant,
        }
        self.record |= {
            "metric": metric,
            "scores": {name: score.to_dict() for name, score in scores.items()},
            "commonest": commonest,
            "uses_images": not sighted.ignores_images,
            "fingerprints": {"train": self._training(MODEL)["fingerprint"], "test": sighted.fingerprint},
        }
        self._keep()
        width = max(len(text) for text in ROWS.values())
        self.say()
        self.say(f"   {'':{width}}  {metric} [95% interval]")
        for name, score in scores.items():
            self.say(f"   {ROWS[name]:{width}}  {score}")
        self.say()
        if self.record["uses_images"]:
            self.say("   It uses its images: its interval is above the one with images shuffled.")
        else:
            self.say("   It does NOT use its images: its interval is not above the one with images shuffled.")

    def _majority(self, metric: str) -> tuple[str, Any]:
        """Return the commonest training answer, and its score on the test split."""
        source = open_dataset(self.source)
        commonest = Counter(example.targets[0] for example in source.load("train")).most_common(1)[0][0]
        examples = source.load("test")
        resolved = resolve("metric", PartConfig(use=metric))
        scorer: Metric = resolved.cls(resolved.options)
        references = [list(example.targets) for example in examples]
        groups = [input_key(example.image) for example in examples]
        return commonest, measure(scorer, [Prediction(label=commonest)] * len(examples), references, groups)

    def _training(self, role: str) -> Mapping[str, Any]:
        return self.models[role].provenance.run["training"]

    def reload(self) -> None:
        """Ask a fresh process, which has only the folder, and compare with the model in this one."""
        examples = open_dataset(self.source).load("test")
        self.examples = examples
        self.gallery = report.choose(examples, self.predictions)
        chosen = sorted({*range(0, len(examples), max(1, len(examples) // ASKED)), *self.gallery.wrong, *self.gallery.right})
        questions = [examples[i] for i in chosen]
        self.say()
        self.say(f"4. Load {self.output / MODEL} in a fresh process and ask it {len(questions)} test questions")
        with self._timed("reload"):
            self.record["reload"] = compare(
                self.models[MODEL],
                self.output / MODEL,
                [str(example.image) for example in questions],
                [example.text for example in questions],
            )
        self._keep()
        result = self.record["reload"]
        if result["equal"]:
            self.say("   Every answer and every confidence equals that of the model in this process, to the last bit.")
        else:
            wrong = f"{result['different']} of {result['questions']} answers or confidences DIFFER"
            self.say(f"   {wrong} from those of the model in this process.")

    def report(self) -> None:
        """Write the report, and copies of a few test pictures."""
        self.say()
        self.say(f"5. Write {self.output / REPORT}")
        with self._timed("report"):
            self.record["pictures"] = self._copy_pictures()
            model = self.models[MODEL]
            page = report.render(
                self.record,
                self.gallery,
                self.examples,
                self.predictions,
                training={MODEL: self._training(MODEL), BLIND: self._training(BLIND)},
                recipe=model.recipe.to_dict(short=True),
                summary=str(model.summary()),
            )
            (self.output / REPORT).write_text(page, encoding="utf-8")
        self.record["finished"] = True
        self._keep()

    def _copy_pictures(self) -> list[dict[str, str]]:
        folder = self.output / IMAGES
        folder.mkdir(exist_ok=True)
        copied = []
        for i in (self.gallery.right or self.gallery.wrong)[:3]:
            example = self.examples[i]
            name = f"{Path(example.image).stem}.png"
            shutil.copyfile(example.image, folder / name)
            copied.append({"file": name, "question": example.text, "answer": self.predictions[i].label or ""})
        return copied

    @contextmanager
    def _timed(self, phase: str, *, go_on: bool = False) -> Iterator[None]:
        """Record the seconds of a phase, also if it is interrupted; ``go_on`` adds them to the seconds that it took before."""
        before = self.record["seconds"].get(phase, 0.0) if go_on else 0.0
        self.record["seconds"][phase] = before
        self._keep()
        started = time.monotonic()
        try:
            yield
        finally:
            self.record["seconds"][phase] = round(before + time.monotonic() - started, 1)
            self._keep()

    def _keep(self) -> None:
        try:
            write_atomically(self.output / RECORD, json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written: {error.strerror or error}") from None


def compare(model: Any, folder: Path, images: list[str], questions: list[str]) -> dict[str, Any]:
    """Compare the answers of a fresh process that loads ``folder`` with those of ``model`` in this one."""
    own, fresh = answers(model, images, questions), in_fresh_process(folder, images, questions)
    different = sum(a != b for a, b in zip(own, fresh, strict=True))
    return {"questions": len(questions), "different": different, "equal": not different}


def _has_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINTS).is_dir() and get_last_checkpoint(str(folder / CHECKPOINTS)) is not None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"settings", "trained", "finished", "seconds"} <= set(record) else None
