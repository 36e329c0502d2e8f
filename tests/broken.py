"""Entries that each break one promise of the contract, for tests/test_contract.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import nn

import mmzoo
from mmzoo.formats import Format
from mmzoo.interfaces import Features, FeatureSpec
from mmzoo.metrics import Metric
from mmzoo.testing import Sample
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


class SeesAhead(BagOfWords):
    kind = "causal"


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
        return Features(found.tokens.float(), found.pooled)


class CountsItsBatch(Classify):
    def predict(self, model, features, batch, **options):
        found = super().predict(model, features, batch, **options)
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
    class Options(mmzoo.interfaces.Options):
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


class WritesAnything(GPTMini):
    def generate(self, *arguments, **options):
        return super().generate(*arguments, **options) + 10**6


class LosesOne(Classify):
    def loss(self, *arguments):
        return super().loss(*arguments)[0]


class LosesNumbers(Classify):
    def loss(self, *arguments):
        return tuple(value.item() for value in super().loss(*arguments))


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
        return np.array([[text] for text in predictions])
