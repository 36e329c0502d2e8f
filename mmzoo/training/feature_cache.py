"""Encoding beforehand: each distinct input (picture, clip) goes through a frozen encoder once, and its features are kept in a
`mmzoo.training.feature_store.FeatureStore` that is named by what they depend on.

Over several processes each encodes a share, and each machine keeps a store of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mmzoo.common.files import cache_folder
from mmzoo.common.progress import Bar, bar
from mmzoo.data.collate import tensors
from mmzoo.errors import BadInput, BadRecipe, DoesNotFit, FeatureCacheError, MmzooError
from mmzoo.interfaces.example import Example
from mmzoo.interfaces.features import Features
from mmzoo.modalities.identity import content_digest, input_key
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import plural
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.resolve import resolve
from mmzoo.training.feature_store import OFF, FeatureStore, Layout, NoPlace, Writer

log = logging.getLogger(__name__)

KEY = "training.cache_features"
# The share of the free disk that features may take: where they were asked for, and where they were not.
MOST, MOST_UNASKED = 0.9, 0.25
REREAD = 4  # examples that are read twice, to see whether their inputs change
READERS = 8  # threads that hash files

Place = tuple[int, int]  # of an input: its example, and which of that one's inputs it is


@dataclass
class Precomputed:
    """Features by input, as a `mmzoo.data.collate.FeatureSource`: a `FeatureStore`, the sha256 of each input by its
    `mmzoo.modalities.identity.input_key`, so that files are not read again, and what opens inputs."""

    store: FeatureStore
    digests: dict[Hashable, bytes]
    pipeline: InputPipeline

    def of(self, source: Any, key: Hashable) -> dict[str, Tensor]:
        digest = self.digests.get(key)
        found = None if digest is None else self.store.get(digest)
        if found is None:
            self.pipeline.open(source)  # the usual reason
            raise FeatureCacheError(f"an input is not what it was when training began; train again, or without a cache: {OFF}")
        return {f"feature_{name}": value for name, value in found.items()}


def precompute(
    model: MultimodalModel,
    examples: Sequence[Example],
    accelerator: Accelerator,
    *,
    workers: int,
    reads: Callable[[], float],
    progress: bool,
) -> Precomputed | None:
    """Encode the inputs of ``examples`` that are not in the store yet; None where that is not wanted, or, with
    `TrainOptions.cache_features` empty, would gain nothing or cannot be done.

    Args:
        model: on the device that it trains on.
        workers: processes that open inputs.
        reads: gives how many examples the run will read.

    Raises:
        DoesNotFit, BadRecipe: it is asked for, and the model or the data cannot have it.
        FeatureCacheError: the store is damaged or another encoder's, or the disk is full.
    """
    options = model.recipe.training
    asked = options.cache_features
    if asked is False:
        return None
    if problem := _obstacle(model, examples):
        if asked:
            raise problem
        return None
    facts = _facts(model, accelerator)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    store = FeatureStore(cache_folder() / "features" / name, facts)

    pipeline = model.input_pipeline()
    places, count = _distinct(examples, pipeline.modality)
    encodings = reads() / len(examples) * (len(places) if options.keep_images_together else count)
    digests: dict[Hashable, bytes] = {}
    missing: list[bytes] = []
    trouble: NoPlace | None = None
    try:
        wanted = bool(asked) or encodings > len(places) - len(store)
        if wanted:  # else no file need be read
            digests = _digests(places)
            missing = [digest for digest in dict.fromkeys(digests.values()) if digest not in store]
            wanted = bool(asked) or encodings > len(missing)
    except NoPlace as error:
        wanted, trouble = False, error
    if not _agreed(accelerator, wanted, trouble, asked):
        return None
    # A share goes by each input's number among all, since what is missing changes as soon as one process writes.
    first = {digests[key]: place for key, place in places.items()}
    share = set(list(first)[accelerator.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))])
    mine = [first[digest] for digest in missing if digest in share]
    with bar("encoding", len(share), shown=progress) as shown:
        shown.move(len(share) - len(mine), f"{decimal(store.size)} in {store.folder}")
        try:
            loader = _loader(pipeline, examples, mine, model.recipe.training.batch_size, workers)
            _encode(model, loader, store, accelerator, len(missing), MOST if asked else MOST_UNASKED, shown)
        except NoPlace as error:
            trouble = error
    if not _agreed(accelerator, trouble is None, trouble, asked):
        return None
    store.reload()
    return Precomputed(store, digests, pipeline)


def _agreed(accelerator: Accelerator, wanted: bool, trouble: NoPlace | None, asked: bool | None) -> bool:
    """Whether all processes want it; also where they wait for each other."""
    if trouble is not None:
        if asked:
            raise trouble
        log.warning("%s. Training goes on without a feature cache", trouble)
    if accelerator.num_processes == 1:
        return wanted
    return bool(accelerator.gather(torch.tensor([int(wanted)], device=accelerator.device)).min())


def _obstacle(model: MultimodalModel, examples: Sequence[Example]) -> MmzooError | None:
    """Why the features cannot be kept."""
    policy, options = model.provenance.policies["encoder"], model.recipe.training
    if policy != "frozen":
        return DoesNotFit(f"{KEY}: the features of an encoder that is trained change (encoder.train: {policy}); set it to frozen")
    if model.encoder.transform is None:
        return BadRecipe(f"{KEY}: this encoder looks at nothing; leave it out")
    if options.blank_images:
        return BadRecipe(f"{KEY}: with training.blank_images there is nothing to encode; leave out one of the two")
    if not isinstance(examples, Sequence):
        return BadRecipe(f"{KEY}: a streamed data set cannot be gone through beforehand; leave it out")
    if model.fusion.needs_tokens and model.encoder.spec.tokens is None:
        return DoesNotFit(f"{KEY}: this encoder's number of tokens depends on the input; leave it out")
    with torch.random.fork_rng(devices=[]):
        first, second = _preprocessing(model), _preprocessing(model)
    if first != second:
        return DoesNotFit(f"{KEY}: this encoder's transform is random; leave it out")
    modality = model.encoder.modality

    def key(i: int) -> Hashable:
        return input_key(examples[i].inputs(modality))

    if any(key(i) != key(i) for i in range(min(REREAD, len(examples)))):
        return BadRecipe(f"{KEY}: this data set's {plural(modality)} change each time that they are read; leave it out")
    return None


# What the features depend on


def _facts(model: MultimodalModel, accelerator: Accelerator) -> dict[str, Any]:
    """Everything but the input. GPUs and CPUs round differently, so they share no features."""
    entry = model.provenance.entries["encoder"]
    return {
        "encoder": f"{entry.target} of {entry.plugin} {entry.version}",
        "options": resolve("encoder", model.recipe.encoder).options.model_dump(mode="json"),
        "weights": _weights(model),
        "preprocessing": _preprocessing(model),
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "tokens": model.fusion.needs_tokens,
    }


def _weights(model: MultimodalModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.encoder.state_dict().items()):
        digest.update(f"{name}|{value.dtype}|{list(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _preprocessing(model: MultimodalModel) -> str:
    """A digest of what the transform makes of some inputs: it changes with the code underneath too."""
    digest = hashlib.sha256()
    pipeline = model.input_pipeline()
    assert pipeline.transform is not None
    for probe in pipeline.reader.probes():
        value = pipeline.transform(probe)
        digest.update(f"{value.dtype}|{list(value.shape)}|".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# The inputs


def _distinct(examples: Sequence[Example], modality: str) -> tuple[dict[Hashable, Place], int]:
    """The first place of each input, by `input_key`, and the number of inputs, distinct or not."""
    places: dict[Hashable, Place] = {}
    count = 0
    for i, example in enumerate(examples):
        for j, source in enumerate(example.inputs(modality)):
            places.setdefault(input_key(source), (i, j))
            count += 1
    return places, count


def _digests(places: Mapping[Hashable, Place]) -> dict[Hashable, bytes]:
    """The sha256 of each input: the key itself, unless it is a path."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(
            zip(places, pool.map(lambda key: key if isinstance(key, bytes) else content_digest(key), places), strict=True)
        )


class _Inputs(TorchDataset):
    """Inputs with their sha256, opened; None for one that cannot be read, which training will speak of."""

    def __init__(self, examples: Sequence[Example], places: Sequence[Place], pipeline: InputPipeline) -> None:
        self.examples, self.places, self.pipeline = examples, places, pipeline

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[bytes, Tensor] | None:
        example, which = self.places[number]
        source = self.examples[example].inputs(self.pipeline.modality)[which]
        try:
            opened = self.pipeline.open(source)
        except BadInput:
            return None
        return content_digest(source), opened  # not what it was when the keys were made: a file may have changed since

    def batch(self, opened: list[tuple[bytes, Tensor] | None]) -> tuple[int, list[bytes], dict[str, Tensor]]:
        """How many were to be opened, the digests of those that were, and what `Intake.batch` makes of them."""
        good = [each for each in opened if each is not None]
        return len(opened), [digest for digest, _ in good], self.pipeline.batch([each for _, each in good]) if good else {}


def _loader(pipeline: InputPipeline, examples: Sequence[Example], places: Sequence[Place], size: int, workers: int) -> DataLoader:
    inputs = _Inputs(examples, places, pipeline)
    return DataLoader(
        inputs,
        batch_size=size,
        num_workers=workers,
        collate_fn=inputs.batch,
        generator=torch.Generator(),  # the default one goes on as if nothing had been drawn
    )


def _encode(
    model: MultimodalModel,
    loader: DataLoader,
    store: FeatureStore,
    accelerator: Accelerator,
    new: int,
    most: float,
    shown: Bar,
) -> None:
    """Encode what the loader gives into the store, which grows by ``new`` records in all processes together."""
    with ExitStack() as stack:
        writer: Writer | None = None
        for count, digests, batch in loader:
            if batch:
                moved = tensors(batch, accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    features = model.encode(moved["inputs"], lengths=moved.get("input_lengths"))
                rows = _rows(features, tokens=model.fusion.needs_tokens)
                if writer is None:
                    layout = Layout.of(rows)
                    store.begin(layout, new, most=most)
                    shown.move(shown.done, f"{decimal(store.size + new * layout.record)} in {store.folder}")
                    writer = stack.enter_context(store.writing(layout))
                writer.append(digests, rows)
            shown.advance(count)


def _rows(features: Features, *, tokens: bool) -> dict[str, Tensor]:
    """What is kept of features [inputs, ...]."""
    rows = {"pooled": features.pooled}
    if tokens:
        rows["tokens"] = features.tokens
        if features.mask is not None:
            rows["mask"] = features.mask
    return rows
