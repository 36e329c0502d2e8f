"""Entries that each break one promise of the contract, for tests/testing/test_contract.py."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from pydantic import BaseModel, Field
from torch import nn

import mmzoo
from mmzoo.data.tokens import pad_with_mask, prompt_ids
from mmzoo.errors import BadInput, DataError
from mmzoo.evaluation.metric import Metric
from mmzoo.formats.format import Format
from mmzoo.interfaces import Augmentation, Encoder, Features, FeatureSpec, Fusion, Prediction, Task
from mmzoo.modalities.reader import Reader
from mmzoo.testing import Sample
from mmzoo_fusions.late import LateAttention
from mmzoo_fusions.prefix import LinearPrefix
from mmzoo_scratch.bag import BagOfWords
from mmzoo_scratch.cnn import CNN
from mmzoo_tasks.classify import Classify
from mmzoo_transformers.mini import GPTMini


class NoEncoder(nn.Module):
    pass


class TakesAnything(CNN):
    class Options(BaseModel):
        image_size: int = 16
        channels: list[int] = [8, 16]


class Hides(CNN):
    """A recipe's ``train`` is a policy."""

    class Options(CNN.Options):
        train: int = Field(3, description="never given")


class OtherDim(CNN):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.spec = FeatureSpec(self.spec.dim, self.spec.pooled_dim + 1, self.spec.tokens)


class Shuffles(CNN):
    def forward(self, inputs: Any) -> Any:
        features = super().forward(inputs)
        return Features(features.tokens[:, torch.randperm(features.tokens.shape[1])], features.pooled)


class SeesAhead(BagOfWords):
    architecture = "causal"


class AddsOneMore(LinearPrefix):
    @property
    def added_tokens(self) -> int:
        return self.options.length + 1


class LearnsTwice(Classify):
    @classmethod
    def learn(cls, options, examples):
        return super().learn(cls.Options(), examples)


class StaysBehind(CNN):
    """Its scale is a tensor, and neither parameter nor buffer."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.scale = torch.ones(3, 1, 1)

    def forward(self, inputs):
        return super().forward(inputs * self.scale)


class OneType(CNN):
    def forward(self, inputs):
        found = super().forward(inputs)
        return Features(found.tokens @ torch.eye(found.tokens.shape[-1]), found.pooled)


class CountsItsBatch(Classify):
    def predict(self, outputs, batch, **options):
        found = super().predict(outputs, batch, **options)
        for prediction in found:
            prediction.score /= len(found)
        return found


class Unseeded(CNN):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.register_buffer("noise", torch.tensor(np.random.default_rng().random()))


class Idle(CNN):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.idle = nn.Parameter(torch.zeros(1))


class Forgets(CNN):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.register_buffer("shift", torch.randn(1), persistent=False)

    def forward(self, inputs):
        return super().forward(inputs + self.shift)


class NeedsTokens(LinearPrefix):
    """It reads the first token, and does not say so."""

    def early(self, features, embeddings, mask):
        return super().early(Features(features.tokens, features.pooled + features.tokens[:, 0, :1]), embeddings, mask)


class Unpicklable(CNN):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        before = self.transform
        del self.transform  # a module, which only another may replace
        self.transform = lambda image: before(image)


class OtherwiseCompiled(CNN):
    def forward(self, inputs):
        found = super().forward(inputs)
        return Features(found.tokens * 2, found.pooled) if torch.compiler.is_compiling() else found


class OtherwiseRecomputed(GPTMini):
    factor = 1

    def activation_checkpointing_enable(self, **_: Any) -> None:
        self.factor = 2

    def forward(self, embeddings, mask, decoder_ids=None, memory=None):
        return super().forward(embeddings, mask) * self.factor


class Repeats(Sample):
    class Options(mmzoo.api.Options):
        pass

    def __init__(self, options: Any) -> None:
        super().__init__()

    def load(self, split):
        return [super().load(split)[0]] * 8


class LacksTargets(Repeats):
    def load(self, split):
        examples = Sample().load(split)
        return [*examples[:5], mmzoo.Example("without", examples[0].image, "why?")]


class Flatters(Metric):
    def rows(self, predictions, references):
        return np.ones((len(predictions), 1))

    def score(self, totals):
        return totals[..., 0] / totals[..., 0]


class SaysNothing(Augmentation):
    pass


class FlipsInPlace(Augmentation):
    def opened(self, value):
        value.paste(ImageOps.mirror(value))
        return value


class Draws(Augmentation):
    random = np.random.default_rng()

    def transformed(self, tensor):
        return tensor + self.random.uniform()


class Narrows(Augmentation):
    def transformed(self, tensor):
        return tensor[..., 1:]


class MakesArrays(Augmentation):
    def opened(self, value):
        return np.asarray(value)


RECIPE = {"encoder": {"use": "cnn", "shape": "round"}, "fusion": "late-sum", "language_model": "lstm", "task": "classify"}


class ReadsAnything(Format):
    def read(self, source):
        return None


def command(value: OnlyForTypeCheckers) -> None:  # noqa: F821
    pass


async def waits() -> None:
    pass


class WiderInTraining(CNN):
    def forward(self, inputs):
        found = super().forward(inputs)
        return Features(found.tokens.repeat(1, 1, 2), found.pooled) if self.training else found


class RaisesNoException(CNN):
    def forward(self, inputs):
        raise BaseExceptionGroup("many", [SystemExit(3)])


class MakesAllDouble(CNN):
    def __init__(self, options: Any) -> None:
        torch.set_default_dtype(torch.float64)
        super().__init__(options)


class _Modality:
    def __get__(self, instance, owner):
        torch.set_default_dtype(torch.float64)
        return "image"


class HasMadeAllDouble(CNN):
    modality = _Modality()


class WritesNumbers(GPTMini):
    def generate(self, *arguments, **options):
        return super().generate(*arguments, **options) / 2


class WritesForOthers(GPTMini):
    def generate(self, *arguments, **options):
        return super().generate(*arguments, **options).repeat(2, 1)


class WritesOn(GPTMini):
    def generate(self, embeddings, mask, memory=None, *, stopping_criteria=(), **options):
        return super().generate(embeddings, mask, memory, **options)


class WritesForEver(GPTMini):
    def generate(self, embeddings, mask, memory=None, **options):
        while True:
            embeddings = embeddings + 1


class WritesAnything(GPTMini):
    def generate(self, *arguments, **options):
        return super().generate(*arguments, **options) + 10**6


class LosesOne(Classify):
    def loss(self, outputs, batch):
        return {term: total for term, (total, _) in super().loss(outputs, batch).items()}


class LosesNoNames(Classify):
    def loss(self, outputs, batch):
        return super().loss(outputs, batch)["cross-entropy"]


class LosesNumbers(Classify):
    def loss(self, outputs, batch):
        return {term: tuple(value.item() for value in pair) for term, pair in super().loss(outputs, batch).items()}


class HoldsTexts(Repeats):
    def load(self, split):
        return ["a", "b"]


class HoldsNothing(Repeats):
    def load(self, split):
        return 7


class HasOneSplit(Repeats):
    def splits(self):
        return "train"


class Lists(Metric):
    def rows(self, predictions, references):
        return [[1.0] for _ in predictions]

    def score(self, totals):
        return totals[..., 0]


class Words(Lists):
    def rows(self, predictions, references):
        return np.array([[prediction.text] for prediction in predictions])


class LosesMeans(Classify):
    def loss(self, outputs, batch):
        return {term: (total / count, count) for term, (total, count) in super().loss(outputs, batch).items()}


class IsBlind(LinearPrefix):
    def early(self, features, embeddings, mask):
        return super().early(Features(features.tokens * 0, features.pooled * 0), embeddings, mask)


class ReadsPadding(LateAttention):
    def late(self, features, hidden):
        return super().late(Features(features.tokens, features.pooled), hidden)


class Shift(Fusion):
    """Adds the features to each state of the language model, through hooks, as its contract asks."""

    needs_blocks = True

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: Any) -> None:
        super().__init__(options, encoder, language_model)
        self.project = nn.Linear(encoder.pooled_dim, language_model.dim)

    def deep(self, language_model):
        for block in language_model.blocks():
            block.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, block, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        if (features := self.features_for(states.shape[0])) is None:
            return None
        states = states + self.project(features.pooled)[:, None]
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


class AveragesTokens(Shift):
    """Its mean over the tokens that are there is 0 / 0 where none is."""

    needs_tokens = True

    def prepare(self, features):
        real = features.token_mask()
        mean = (features.tokens.mean(2) * real).sum(1) / real.sum(1)
        return replace(features, pooled=features.pooled + mean[:, None])


class SeesItsBatch(Shift):
    """What an input is gets less where another of the batch is missing."""

    def prepare(self, features):
        there = 1.0 if features.present is None else features.present.float().mean()
        return replace(features, pooled=100 * there * features.pooled)


class ClosesOver(Shift):
    """Its hooks are functions, which a deep copy shares with the original."""

    def deep(self, language_model):
        for block in language_model.blocks():
            block.register_forward_pre_hook(lambda *arguments: self._hook(*arguments), with_kwargs=True)


class KeepsFeatures(Shift):
    """Keeps the features of the last call, whoever made it."""

    last = None

    def prepare(self, features):
        self.last = features.pooled
        time.sleep(0.01)
        return features

    def features_for(self, rows):
        return None if self.call is None else Features(self.last[:1, None], self.last[:1].expand(rows, -1))


class KeepsAFunction(Shift):
    """Its copy has the function of the original, and with it the original's weights."""

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: Any) -> None:
        super().__init__(options, encoder, language_model)
        self.shift = lambda states, pooled: states + self.project(pooled)[:, None]

    def _hook(self, block, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        if (features := self.features_for(states.shape[0])) is None:
            return None
        states = self.shift(states, features.pooled)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


class CopiesWrongly(Shift):
    """Its copy is itself."""

    def __deepcopy__(self, memo):
        return self


class ReadsPrompts(GPTMini):
    """Padding before a prompt is a part of it."""

    def generate(self, embeddings, mask, memory=None, **options):
        return super().generate(embeddings, torch.ones_like(mask), memory, **options)


class WritesPast(GPTMini):
    """It writes with its output layer's weights, and not with the layer."""

    def generate(self, embeddings, mask, memory=None, *, max_new_tokens=1, **options):
        found = []
        for row, real in zip(embeddings, mask.bool(), strict=True):
            states, said = row[real][None], []
            for _ in range(max_new_tokens):
                hidden = self(states, torch.ones(states.shape[:2], dtype=torch.long))[:, -1]
                said.append((hidden @ self.output_layer().weight.T).argmax(-1))
                states = torch.cat([states, self.embed(said[-1][:, None])], 1)
            found.append(torch.cat(said))
        return torch.stack(found)


class Clips(Reader):
    """Arrays of any length, of a modality that no one else has."""

    def read(self, source):
        if not isinstance(source, np.ndarray):
            raise BadInput(f"{source!r} is no array")
        return source

    def blank(self, transform):
        return transform(np.zeros(8, np.float32))

    def probes(self):
        return [np.linspace(0, 1, n, dtype=np.float32) for n in (4, 9, 6)]


def column(samples):
    return torch.from_numpy(samples)[:, None].repeat(1, 8)


class Heard(Encoder):
    """Of a modality of its own, and as its contract asks."""

    modality = "pulse"
    reader = Clips()
    variable_length = True

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.project = nn.Linear(8, 8)
        self.spec = FeatureSpec(8, 8, None, "pulse")
        self.transform = column

    def forward(self, inputs, lengths):
        mask = (torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]).long()
        tokens = self.project(inputs) * mask[..., None]
        return Features(tokens, tokens.sum(1) / lengths[:, None].to(tokens.dtype), mask)


class HearsSilence(Heard):
    """Zeros that fill the batch are heard."""

    def forward(self, inputs, lengths):
        found = super().forward(inputs, lengths)
        return Features(found.tokens, self.project(inputs).mean(1), found.mask)


class HearsNothingKnown(Heard):
    class Deaf(Clips):
        def read(self, source):
            raise BadInput("never")

    reader = Deaf()


class Measures(Task):
    """A number, and no word."""

    metrics = ("accuracy",)

    def __init__(self, options: Any, language_model: Any, encoders: Any) -> None:
        super().__init__(options, language_model, encoders)
        self.head = nn.Linear(language_model.dim, 1)

    def references(self, example):
        try:
            return [str(float(example.targets[0]))]
        except ValueError:
            raise DataError(f"example {example.id} has no number") from None

    def collate(self, examples, text, *, training):
        ids, mask = pad_with_mask(prompt_ids(text, [e.text for e in examples]), text.tokenizer.pad_token_id)
        labels = {"labels": torch.tensor([float(e.targets[0]) for e in examples])} if training else {}
        return {"ids": ids, "mask": mask, **labels}

    def loss(self, outputs, batch):
        said = self.head(outputs.pooled).squeeze(1)
        return {"square": ((said - batch["labels"]).square().sum(), torch.tensor(len(said)))}

    def predict(self, outputs, batch, **options):
        said = self.head(outputs.pooled).squeeze(1)
        return [Prediction(value=value) for value in said.float().tolist()]


class Distance(Metric):
    perfect = 0.0
    smaller_is_better = True

    def rows(self, predictions, references):
        return np.array([[abs(float(p.text) - float(r[0])), 1.0] for p, r in zip(predictions, references, strict=True)])

    def score(self, totals):
        return totals[..., 0] / totals[..., 1]


class Errs(Distance):
    smaller_is_better = False
