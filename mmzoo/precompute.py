"""Encoding beforehand: each distinct picture goes through a frozen encoder once, and its features are kept in a
`mmzoo.features.FeatureStore` that is named by what they depend on.

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

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mmzoo.cache import cache_folder
from mmzoo.data import Example, content_digest, image_key, open_image
from mmzoo.errors import BadImage, BadRecipe, DoesNotFit, FeatureCacheError, MmzooError
from mmzoo.features import OFF, FeatureStore, Layout, NoPlace, Writer
from mmzoo.interfaces import Features
from mmzoo.model import MultimodalModel
from mmzoo.progress import Bar, bar
from mmzoo.resolve import resolve

log = logging.getLogger(__name__)

KEY = "train.cache_features"
# The share of the free disk that features may take: where they were asked for, and where they were not.
MOST, MOST_UNASKED = 0.9, 0.25
PROBES = ((64, 48), (48, 80), (224, 224), (300, 200))  # sizes of pictures that stand for a transform
REREAD = 4  # examples that are read twice, to see whether their images change
READERS = 8  # threads that hash files

Place = tuple[int, int]  # of an image: its example, and which of that one's images it is


@dataclass
class Precomputed:
    """Features by picture, as a `mmzoo.data.FeatureSource`: a `FeatureStore`, and the sha256 of each picture by its
    `image_key`, so that files are not read again."""

    store: FeatureStore
    digests: dict[Hashable, bytes]

    def of(self, image: Any, key: Hashable) -> dict[str, Tensor]:
        digest = self.digests.get(key)
        found = None if digest is None else self.store.get(digest)
        if found is None:
            open_image(image)  # the usual reason
            raise FeatureCacheError(f"an image is not what it was when training began; train again, or without a cache: {OFF}")
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
    """Encode the pictures of ``examples`` that are not in the store yet; None where that is not wanted, or, with
    `TrainOptions.cache_features` empty, would gain nothing or cannot be done.

    Args:
        model: on the device that it trains on.
        workers: processes that open images.
        reads: gives how many examples the run will read.

    Raises:
        DoesNotFit, BadRecipe: it is asked for, and the model or the data cannot have it.
        FeatureCacheError: the store is damaged or another encoder's, or the disk is full.
    """
    options = model.recipe.train
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

    places, count = _distinct(examples)
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
    # A share goes by each picture's number among all, since what is missing changes as soon as one process writes.
    pictures = {digests[key]: place for key, place in places.items()}
    share = set(list(pictures)[accelerator.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))])
    mine = [pictures[digest] for digest in missing if digest in share]
    with bar("encoding", len(share), shown=progress) as shown:
        shown.move(len(share) - len(mine), f"{decimal(store.size)} in {store.folder}")
        try:
            loader = _loader(model, examples, mine, workers)
            _encode(model, loader, store, accelerator, len(missing), MOST if asked else MOST_UNASKED, shown)
        except NoPlace as error:
            trouble = error
    if not _agreed(accelerator, trouble is None, trouble, asked):
        return None
    store.reload()
    return Precomputed(store, digests)


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
    policy, options = model.provenance.policies["encoder"], model.recipe.train
    if policy != "frozen":
        return DoesNotFit(f"{KEY}: the features of an encoder that is trained change (encoder.train: {policy}); set it to frozen")
    if model.encoder.transform is None:
        return BadRecipe(f"{KEY}: this encoder looks at nothing; leave it out")
    if options.blank_images:
        return BadRecipe(f"{KEY}: with train.blank_images there is no image to encode; leave out one of the two")
    if not isinstance(examples, Sequence):
        return BadRecipe(f"{KEY}: a streamed data set cannot be gone through beforehand; leave it out")
    if model.fusion.needs_tokens and model.encoder.spec.tokens is None:
        return DoesNotFit(f"{KEY}: this encoder's number of tokens depends on the image; leave it out")
    with torch.random.fork_rng(devices=[]):
        first, second = _preprocessing(model), _preprocessing(model)
    if first != second:
        return DoesNotFit(f"{KEY}: this encoder's transform is random; leave it out")
    if any(image_key(examples[i].image) != image_key(examples[i].image) for i in range(min(REREAD, len(examples)))):
        return BadRecipe(f"{KEY}: this data set's images change each time that they are read; leave it out")
    return None


# What the features depend on


def _facts(model: MultimodalModel, accelerator: Accelerator) -> dict[str, Any]:
    """Everything but the picture. GPUs and CPUs round differently, so they share no features."""
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
    """A digest of what the transform makes of some pictures: it changes with the code underneath too."""
    digest = hashlib.sha256()
    random, transform = np.random.default_rng(0), _transform(model)
    for width, height in PROBES:
        value = transform(Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        digest.update(f"{value.dtype}|{list(value.shape)}|".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _transform(model: MultimodalModel) -> Any:
    """What makes the encoder's input of a picture, or of its tiles."""
    return model.collator(training=True).transform


# The pictures


def _distinct(examples: Sequence[Example]) -> tuple[dict[Hashable, Place], int]:
    """The first place of each picture, by `image_key`, and the number of images, distinct or not."""
    places: dict[Hashable, Place] = {}
    count = 0
    for i, example in enumerate(examples):
        for j, image in enumerate(example.images):
            places.setdefault(image_key(image), (i, j))
            count += 1
    return places, count


def _digests(places: Mapping[Hashable, Place]) -> dict[Hashable, bytes]:
    """The sha256 of each picture: the key itself, unless it is a path."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(
            zip(places, pool.map(lambda key: key if isinstance(key, bytes) else content_digest(key), places), strict=True)
        )


class _Pictures(TorchDataset):
    """Pictures with their sha256, opened; None for one that cannot be read, which training will speak of."""

    def __init__(self, examples: Sequence[Example], places: Sequence[Place], transform: Any) -> None:
        self.examples, self.places, self.transform = examples, places, transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[bytes, Tensor] | None:
        example, which = self.places[number]
        image = self.examples[example].images[which]
        try:
            inputs = self.transform(open_image(image))
        except BadImage:
            return None
        return content_digest(image), inputs  # not what it was when the keys were made: a file may have changed since


def _stack(pictures: list[tuple[bytes, Tensor] | None]) -> tuple[int, list[bytes], Tensor | None]:
    good = [picture for picture in pictures if picture is not None]
    return len(pictures), [digest for digest, _ in good], torch.stack([inputs for _, inputs in good]) if good else None


def _loader(model: MultimodalModel, examples: Sequence[Example], places: Sequence[Place], workers: int) -> DataLoader:
    return DataLoader(
        _Pictures(examples, places, _transform(model)),
        batch_size=model.recipe.train.batch_size,
        num_workers=workers,
        collate_fn=_stack,
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
        for count, digests, inputs in loader:
            if inputs is not None:
                with torch.no_grad(), accelerator.autocast():
                    features = model.encode(inputs.to(accelerator.device))
                rows = _rows(features, tokens=model.fusion.needs_tokens)
                if writer is None:
                    layout = Layout.of(rows)
                    store.begin(layout, new, most=most)
                    shown.move(shown.done, f"{decimal(store.size + new * layout.record)} in {store.folder}")
                    writer = stack.enter_context(store.writing(layout))
                writer.append(digests, rows)
            shown.advance(count)


def _rows(features: Features, *, tokens: bool) -> dict[str, Tensor]:
    """What is kept of features [images, ...]."""
    rows = {"pooled": features.pooled}
    if tokens:
        rows["tokens"] = features.tokens
        if features.mask is not None:
            rows["mask"] = features.mask
    return rows
