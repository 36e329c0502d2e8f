"""Encode each distinct input (image, clip, ...) once with a frozen encoder, and cache its features on disk.

They are stored in a `mmzoo.training.feature_store.FeatureStore` whose folder is named by a hash of all that they depend on. Of
several processes each encodes a share, and each machine has a store of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.filesize import decimal
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mmzoo.common.files import cache_folder
from mmzoo.common.progress import Bar, bar
from mmzoo.errors import BadInput, BadRecipe, DoesNotFit, FeatureCacheError, MmzooError
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import content_digest, content_digests, input_key
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import plural
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.resolve import resolve
from mmzoo.training.feature_store import TURN_OFF, CacheUnavailable, FeatureStore, FeatureWriter, layout_of, record_bytes
from mmzoo.training.sampling import grouped_modality

log = logging.getLogger(__name__)

OPTION = "training.cache_features"
# The share of the free disk space that features may take: where the user asked for them, and by default.
SHARE_REQUESTED, SHARE_DEFAULT = 0.9, 0.25
READ_TWICE = 4  # examples that are read twice, to see whether their inputs change

Position = tuple[int, int]  # the number of an example, and of the input within it


@dataclass
class CachedFeatures:
    """Give the collator the features of inputs; implements `mmzoo.data.collate.FeatureSource`."""

    store: FeatureStore
    digests: dict[Hashable, bytes]  # the sha256 of each input by its `input_key`, so that files are not read again
    pipeline: InputPipeline

    def of(self, source: Any, key: Hashable) -> dict[str, Tensor]:
        """Return the features of an input; see `mmzoo.data.collate.FeatureSource`."""
        digest = self.digests.get(key)
        features = None if digest is None else self.store.get(digest)
        if features is None:
            self.pipeline.open(source)  # raises BadInput where the input cannot be read, the usual reason
            raise FeatureCacheError(f"an input changed after training began; train again, or without a cache: {TURN_OFF}")
        return features


@dataclass
class Cached:
    """Hold the encoder whose features are cached, and how the run is set up.

    Args:
        name: the encoder's.
        reads: returns the number of examples that the run will read.
        workers: the number of processes that open inputs.
    """

    model: MultimodalModel
    name: str
    accelerator: Accelerator
    reads: Callable[[], float]
    workers: int
    progress: bool

    @property
    def encoder(self) -> Any:
        return self.model.encoders[self.name]

    @property
    def fusion(self) -> Any:
        return self.model.fusion_of(self.name)

    @property
    def pipeline(self) -> InputPipeline:
        return self.model.input_pipeline(self.name)


def precompute(model: MultimodalModel, examples: Sequence[Example], accelerator: Accelerator, **how: Any) -> dict[str, Any]:
    """Encode the inputs of ``examples`` that are not in the store yet, and return the `CachedFeatures` of all, by encoder.

    An encoder is left out if `TrainingOptions.cache_features` is false; where it is not set, also if a cache cannot help.

    Args:
        model: on the device that it trains on.
        how: ``reads``, ``workers`` and ``progress`` of `Cached`.

    Raises:
        DoesNotFit, BadRecipe: the option is true, but the features of no encoder or of this data set can be cached.
        FeatureCacheError: the store is damaged or belongs to another encoder, or the disk is full.
    """
    requested = model.recipe.training.cache_features
    if requested is False:
        return {}
    problems = {name: _find_problem(model, name, examples) for name in model.encoders}
    if requested and all(problems.values()):
        raise next(error for error in problems.values() if error)
    cached = {
        name: _precompute(Cached(model, name, accelerator, **how), examples) for name, error in problems.items() if error is None
    }
    return {name: features for name, features in cached.items() if features is not None}


def _precompute(cached: Cached, examples: Sequence[Example]) -> CachedFeatures | None:
    """Encode the inputs of one encoder; None if a cache cannot help."""
    model, accelerator, pipeline = cached.model, cached.accelerator, cached.pipeline
    options = model.recipe.training
    requested = options.cache_features
    store = _open_store(cached)
    positions, count = _distinct_inputs(examples, pipeline.modality)
    together = options.keep_images_together and pipeline.modality == grouped_modality(model.modalities)
    encodings = cached.reads() / len(examples) * (len(positions) if together else count)
    digests: dict[Hashable, bytes] = {}
    missing: list[bytes] = []
    failure: CacheUnavailable | None = None
    try:
        useful = bool(requested) or encodings > len(positions) - len(store)
        if useful:  # otherwise no file is read
            digests = content_digests(positions)
            missing = [digest for digest in dict.fromkeys(digests.values()) if digest not in store]
            useful = bool(requested) or encodings > len(missing)
    except CacheUnavailable as error:
        useful, failure = False, error
    if not _all_agree(accelerator, useful, failure, requested):
        return None
    first = {digests[key]: position for key, position in positions.items()}
    # Shares are cut from all inputs, since the missing ones change as soon as another process writes.
    share = set(list(first)[accelerator.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))])
    to_encode = [first[digest] for digest in missing if digest in share]
    with bar("encoding", len(share), shown=cached.progress) as progress_bar:
        progress_bar.move(len(share) - len(to_encode), f"{decimal(store.size)} in {store.folder}")
        try:
            inputs = _Inputs(examples, to_encode, pipeline)
            # A generator of its own leaves the state of the default one as it is.
            loading: dict[str, Any] = {
                "num_workers": cached.workers, "collate_fn": inputs.batch, "generator": torch.Generator()
            }  # fmt: skip
            loader = DataLoader(inputs, batch_size=options.batch_size, **loading)
            _encode(cached, loader, store, len(missing), progress_bar)
        except CacheUnavailable as error:
            failure = error
    if not _all_agree(accelerator, failure is None, failure, requested):
        return None
    store.reload()
    return CachedFeatures(store, digests, pipeline)


def _all_agree(accelerator: Accelerator, useful: bool, failure: CacheUnavailable | None, requested: bool | None) -> bool:
    """Return whether all processes can use the cache, which wait for each other; raise ``failure`` if the user asked for it."""
    if failure is not None:
        if requested:
            raise failure
        log.warning("%s. Training goes on without a feature cache", failure)
    if accelerator.num_processes == 1:
        return useful
    return bool(accelerator.gather(torch.tensor([int(useful)], device=accelerator.device)).min())


def _find_problem(model: MultimodalModel, name: str, examples: Sequence[Example]) -> MmzooError | None:
    """Return the error that says why the features of an encoder cannot be cached, or None if they can."""
    key, options, encoder = f"encoders.{name}", model.recipe.training, model.encoders[name]
    policy = model.provenance.policies[key]
    if policy != "frozen":
        train = f"{model.recipe.label(key)}.train: {policy}"
        return DoesNotFit(f"{OPTION}: the features of a trained encoder change ({train}); set it to frozen")
    if encoder.transform is None:
        return BadRecipe(f"{OPTION}: this encoder has no input; leave the option out")
    if model.recipe.data.augment.get(encoder.modality):
        return BadRecipe(
            f"{OPTION}: data.augment.{encoder.modality} changes the inputs each time, and features are computed once; leave out "
            "one of the two"
        )
    if options.blank_images:
        return BadRecipe(f"{OPTION}: training.blank_images leaves nothing to encode; leave out one of the two")
    if not isinstance(examples, Sequence):
        return BadRecipe(f"{OPTION}: the features of a streamed data set cannot be precomputed; leave the option out")
    if model.fusion_of(name).needs_tokens and encoder.spec.tokens is None:
        return DoesNotFit(f"{OPTION}: this encoder's number of tokens depends on the input; leave the option out")
    pipeline = model.input_pipeline(name)
    with torch.random.fork_rng(devices=[]):
        random = _hash_preprocessing(pipeline) != _hash_preprocessing(pipeline)
    if random:
        return DoesNotFit(f"{OPTION}: this encoder's transform is random; leave the option out")
    modality = encoder.modality
    once, again = ([input_key(examples[i].of(modality)) for i in range(min(READ_TWICE, len(examples)))] for _ in range(2))
    if once != again:
        return BadRecipe(f"{OPTION}: this data set's {plural(modality)} change each time they are read; leave the option out")
    return None


def _open_store(cached: Cached) -> FeatureStore:
    """Open the store for this encoder. GPUs and CPUs round differently, so they share no features."""
    model, key = cached.model, f"encoders.{cached.name}"
    entry = model.provenance.entries[key]
    facts = {
        "encoder": f"{entry.target} of {entry.plugin} {entry.version}",
        "options": resolve("encoder", model.recipe.encoders[cached.name]).options.model_dump(mode="json"),
        "weights": _hash_weights(cached.encoder),
        "preprocessing": _hash_preprocessing(cached.pipeline),
        "precision": cached.accelerator.mixed_precision,
        "device": cached.accelerator.device.type,
        "tokens": cached.fusion.needs_tokens,
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return FeatureStore(cache_folder() / "features" / name, facts)


def _hash_weights(encoder: nn.Module) -> str:
    """Return the sha256 of the encoder's weights: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name}|{value.dtype}|{list(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_preprocessing(pipeline: InputPipeline) -> str:
    """Return the sha256 of some preprocessed probe inputs, so that a change in a library's code shows too."""
    digest = hashlib.sha256()
    assert pipeline.transform is not None
    for value in map(pipeline.transform, pipeline.reader.probes()):
        digest.update(f"{value.dtype}|{list(value.shape)}|".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _distinct_inputs(examples: Sequence[Example], modality: str) -> tuple[dict[Hashable, Position], int]:
    """Return the first position of each distinct input by its `input_key`, and the number of all inputs."""
    positions: dict[Hashable, Position] = {}
    count = 0
    for i, example in enumerate(examples):
        for j, source in enumerate(example.of(modality)):
            positions.setdefault(input_key(source), (i, j))
            count += 1
    return positions, count


class _Inputs(TorchDataset):
    """Open inputs and hash them. An input that cannot be read gives None; the training run reports it."""

    def __init__(self, examples: Sequence[Example], positions: Sequence[Position], pipeline: InputPipeline) -> None:
        self.examples, self.positions, self.pipeline = examples, positions, pipeline

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[bytes, Tensor] | None:
        example, position = self.positions[number]
        source = self.examples[example].of(self.pipeline.modality)[position]
        try:
            opened = self.pipeline.open(source)
        except BadInput:
            return None
        return content_digest(source), opened  # hashed again, since the file may have changed since the keys were made

    def batch(self, opened: list[tuple[bytes, Tensor] | None]) -> tuple[int, list[bytes], dict[str, Tensor]]:
        """Return the number of inputs, and the sha256 and the batch (`InputPipeline.batch`) of those that were readable."""
        readable = [pair for pair in opened if pair is not None]
        batch = self.pipeline.batch([tensor for _, tensor in readable]) if readable else {}
        return len(opened), [digest for digest, _ in readable], batch


def _encode(cached: Cached, loader: DataLoader, store: FeatureStore, new: int, progress_bar: Bar) -> None:
    """Encode the loader's inputs into the store. ``new`` is the number of records that all processes together will add."""
    model, accelerator = cached.model, cached.accelerator
    share = SHARE_REQUESTED if model.recipe.training.cache_features else SHARE_DEFAULT
    writer: FeatureWriter | None = None
    with ExitStack() as stack:
        for count, digests, batch in loader:
            if batch:
                moved = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
                with torch.no_grad(), accelerator.autocast():
                    features = model.encode(moved["inputs"], lengths=moved.get("lengths"), encoder=cached.name)
                records = {"pooled": features.pooled}
                if cached.fusion.needs_tokens:
                    records["tokens"] = features.tokens
                    if features.mask is not None:
                        records["mask"] = features.mask
                if writer is None:
                    layout = layout_of(records)
                    store.prepare(layout, new, share=share)
                    expected = decimal(store.size + new * record_bytes(layout))
                    progress_bar.move(progress_bar.done, f"{expected} in {store.folder}")
                    writer = stack.enter_context(store.writing())
                writer.append(digests, records)
            progress_bar.advance(count)
