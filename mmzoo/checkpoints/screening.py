"""Refuse pickles, code and harmful text in a checkpoint folder or a repository, before anything else in it is read.

This package executes nothing from such a folder. But folders are passed on, and other programs may be less careful.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmzoo.common import parsing
from mmzoo.common.sanitize import sanitize
from mmzoo.errors import CheckpointError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MANIFEST = "mmzoo.json"
WEIGHTS = "model.safetensors"
RUN = "run.json"
CARD = "README.md"
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# The files that `save_pretrained` of a transformers tokenizer writes.
TOKENIZER = _words(
    "tokenizer.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt spiece.model "
    f"sentencepiece.bpe.model tokenizer.model chat_template.jinja {TOKENIZER_CONFIG}"
)
KNOWN = frozenset({MANIFEST, WEIGHTS, RUN, CARD, CONFIG}) | TOKENIZER
TEMPLATE = re.compile(r"additional_chat_templates/[\w-]+\.jinja")

# What a pack holds beside a checkpoint: its list of files, the files of backbones, and wheels of plugins.
PACK = "pack.json"
BACKBONES, WHEELS = "backbones", "wheels"
_BACKBONE_FILE = re.compile(rf"{BACKBONES}/\d{{1,3}}/[A-Za-z0-9][\w.-]{{0,200}}\.(safetensors|json|txt|model|jinja)", re.A)
_WHEEL = re.compile(rf"{WHEELS}/[A-Za-z0-9][\w.+!-]{{0,200}}\.whl", re.A)

PICKLES = _words(".bin .pt .pth .pkl .pickle .ckpt .joblib .dill .h5 .hdf5 .keras .msgpack .mar")
CODE = _words(".py .pyc .pyd .pyx .so .dll .dylib .exe .sh .bat .cmd .ps1 .js .whl .egg .jar .class .lnk .desktop")
# Modules that transformers and other libraries import from a folder. Other scripts in a local folder are allowed.
REMOTE_CODE = re.compile(r"(modeling|configuration|tokenization|processing|image_processing|pipeline|custom|handler)\w*\.py")

MAX_CARD, MAX_METADATA, MAX_CONFIG = 4 << 20, 1 << 18, 4 << 20  # bytes
_SCRIPTS = re.compile(
    r"<\s*/?\s*(script|iframe|object|embed|base|form)\b|<[a-z][^<>]*\son[a-z]+\s*=|\b(javascript|vbscript)\s*:", re.I
)
_METADATA = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.S | re.M)
# Keys that make transformers fetch a part of the model from elsewhere. `architecture` belongs to timm_wrapper; timm looks it up
# on the Hub or in a folder.
FETCHED = frozenset({"architecture", "backbone", "use_pretrained_backbone", "use_timm_backbone"})
# Keys of a configuration that make the library fetch or run something.
_IMPLEMENTATIONS = _words("attn_implementation _attn_implementation experts_implementation _experts_implementation")
REACHING = FETCHED | _IMPLEMENTATIONS | _words("auto_map trust_remote_code custom_pipelines quantization_config")
_KERNELS = re.compile(r"_?(attn|experts)_implementation")
_REPEATED = re.compile(r"layer|depth|block|expert|stage")
_SIZES = re.compile(r"size|dim|len|width|capacity|channel|theta")
MAX_LABELS = 1 << 20  # transformers makes a name for each
MAX_EXPERTS = 1 << 14  # Doge calls so many pairs of vectors experts
MAX_REPEATED = 1024  # on the meta device weights take no memory, but each module takes memory and time
_CALLS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")


def known(name: str) -> bool:
    """Return whether a checkpoint may list a file of this name."""
    return name in KNOWN or TEMPLATE.fullmatch(name) is not None


def known_in_pack(name: str) -> bool:
    """Return whether a pack may hold a file of this name."""
    return name == PACK or known(name) or any(pattern.fullmatch(name) for pattern in (_BACKBONE_FILE, _WHEEL))


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse names that lead out of the folder, pickles and code; ``where`` lists them, for the message."""
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise CheckpointError(f"{where}: file name {name!r} leaves the folder; nothing was read")
        if (suffix := path.suffix.lower()) in PICKLES:
            raise CheckpointError(f"{where}: holds {name}, which may be a pickle and run code when loaded; nothing was read")
        if suffix in CODE:
            raise CheckpointError(f"{where}: holds {name}, which is code; a model is data only. Nothing was read")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds pickles, modules that other libraries would import, or links that lead out of it."""
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":  # in the cache of huggingface_hub, files are links to a folder of blobs
        inside.append((folder.parent.parent / "blobs").resolve())
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(f"{path}: may be a pickle and run code when it is loaded; remove it from the checkpoint")
        if REMOTE_CODE.fullmatch(path.name):
            raise CheckpointError(f"{path}: is code that other libraries would run; remove it from the checkpoint")
        if path.is_symlink() and not any(path.resolve().is_relative_to(allowed) for allowed in inside):
            raise CheckpointError(f"{path}: is a link that leads out of the folder; replace it by the file itself")


def check_config(path: Path) -> None:
    """Refuse a configuration that asks for code to be run; config.json must also have ``model_type: mmzoo``."""
    if not path.is_file():
        return
    data = read_json(path, MAX_CONFIG)
    if path.name == CONFIG and data.get("model_type") != "mmzoo":
        raise CheckpointError(f"{path}: model_type must be 'mmzoo', not {str(data.get('model_type'))[:80]!r}")
    for key, value in walk(data, labels=True):
        if key in _CALLS_CODE and value:
            raise CheckpointError(f"{path}: '{key}' asks for code to be run; a model is data only")


def walk(data: Mapping[str, Any], *, labels: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield each key of a configuration and its value, nested ones too. An item of a list is yielded under the list's key.

    The names of labels (``id2label`` and ``label2id``) are left out unless ``labels``.
    """
    waiting: list[tuple[str, Any]] = list(data.items())
    while waiting:
        key, value = waiting.pop()
        yield str(key), value
        if isinstance(value, Mapping) and (labels or key not in ("id2label", "label2id")):
            waiting.extend(value.items())
        elif isinstance(value, list | tuple):
            waiting.extend((key, item) for item in value)


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` with the key if a model's configuration asks for more layers or labels than any model has.

    The model is made on the meta device before its weights are compared with the checkpoint's. Its modules take memory there too.
    """
    for key, value in walk(config):
        repeats = _REPEATED.search(key) is not None and _SIZES.search(key) is None
        limit: float = MAX_EXPERTS if key == "num_experts" else MAX_REPEATED if repeats else math.inf
        limit = MAX_LABELS if key == "num_labels" else limit
        count = len(value) if isinstance(value, list | tuple) else value
        if isinstance(count, int | float) and count > limit:
            raise ValueError(f"{key}: {count} is more than {limit}")


def check_reach(config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` with the key if a downloaded configuration makes the library download more: a model, or a kernel."""
    for key, value in walk(config):
        if (key in FETCHED and value) or (_KERNELS.fullmatch(key) and isinstance(value, str) and "/" in value):
            raise ValueError(f"{key}: the library would fetch or run what it names ({str(value)[:80]!r})")


def card_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a model card; empty if there is no card, or none in it.

    Raises:
        CheckpointError: the card is too large, holds scripts that would run where it is shown, or has invalid metadata.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CARD:
        raise CheckpointError(f"{path}: is larger than {MAX_CARD >> 20} MiB, too large for a model card")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if script := _SCRIPTS.search(text):
        raise CheckpointError(f"{path}: holds {script[0][:60]!r}, which would run where the card is shown")
    if not (metadata := _METADATA.match(text)):
        return {}
    if len(metadata[1]) > MAX_METADATA:
        raise CheckpointError(f"{path}: its metadata is larger than {MAX_METADATA >> 10} KiB")
    try:
        data = parsing.parse(metadata[1], as_yaml=True)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata is not valid YAML: {error}") from None
    return data if isinstance(data, dict) else {}


def inert(text: str) -> str:
    """Return Markdown without scripts and control characters; `card_metadata` accepts it. Text in it may be untrusted."""
    return _SCRIPTS.sub(lambda script: script[0].replace("<", "&lt;").replace(":", "&#58;"), sanitize(text))


def read_json(path: Path, limit: int, *, numbers: bool = False) -> dict[str, Any]:
    """Read a JSON object of at most ``limit`` bytes. With ``numbers`` it may contain NaN and infinity, as Python writes them."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a pipe would never end
            raise CheckpointError(f"{path}: is no regular file")
        if state.st_size > limit:
            raise CheckpointError(f"{path}: is {state.st_size} bytes; {limit} are allowed")
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; the checkpoint is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_json(text, path, numbers=numbers)


def parse_json(text: bytes, path: Path, *, numbers: bool = False) -> dict[str, Any]:
    """Parse the JSON object of the file ``path``, as `read_json`."""
    try:
        data = parsing.parse(text.decode(), numbers=numbers)
    except ValueError as error:
        raise CheckpointError(f"{path}: is truncated or not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return data
