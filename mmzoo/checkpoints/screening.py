"""What a checkpoint folder or a repository must not hold, whoever made it: looked for before anything else in it is read.

Nothing here is ever executed by this package; but a folder is passed on, and what reads it next may be less careful.
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
# What `save_pretrained` of a transformers tokenizer writes.
TOKENIZER = _words(
    "tokenizer.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt spiece.model "
    f"sentencepiece.bpe.model tokenizer.model chat_template.jinja {TOKENIZER_CONFIG}"
)
KNOWN = frozenset({MANIFEST, WEIGHTS, RUN, CARD, CONFIG}) | TOKENIZER
TEMPLATE = re.compile(r"additional_chat_templates/[\w-]+\.jinja")

# What a pack holds beside a checkpoint: what it lists, files of backbones, wheels of plugins.
PACK = "pack.json"
BACKBONES, WHEELS = "backbones", "wheels"
_BACKBONE_FILE = re.compile(rf"{BACKBONES}/\d{{1,3}}/[A-Za-z0-9][\w.-]{{0,200}}\.(safetensors|json|txt|model|jinja)", re.A)
_WHEEL = re.compile(rf"{WHEELS}/[A-Za-z0-9][\w.+!-]{{0,200}}\.whl", re.A)

PICKLES = _words(".bin .pt .pth .pkl .pickle .ckpt .joblib .dill .h5 .hdf5 .keras .msgpack .mar")
CODE = _words(".py .pyc .pyd .pyx .so .dll .dylib .exe .sh .bat .cmd .ps1 .js .whl .egg .jar .class .lnk .desktop")
# Names that transformers and others import from a folder; a folder of one's own may hold other scripts.
REMOTE_CODE = re.compile(r"(modeling|configuration|tokenization|processing|image_processing|pipeline|custom|handler)\w*\.py")

MAX_CARD, MAX_HEAD, MAX_CONFIG = 4 << 20, 1 << 18, 4 << 20
_SCRIPTS = re.compile(
    r"<\s*/?\s*(script|iframe|object|embed|base|form)\b|<[a-z][^<>]*\son[a-z]+\s*=|\b(javascript|vbscript)\s*:", re.I
)
_HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.S | re.M)
# What makes transformers look elsewhere for a part of the model: `architecture` is timm_wrapper's, for which timm looks on the
# Hub or in a folder.
FETCHED = frozenset({"architecture", "backbone", "use_pretrained_backbone", "use_timm_backbone"})
_KERNELS = re.compile(r"_?(attn|experts)_implementation")
_REPEATED = re.compile(r"layer|depth|block|expert|stage")
_SIZES = re.compile(r"size|dim|len|width|capacity|channel")
MAX_LABELS = 1 << 20  # each gets a name
MAX_REPEATED = 1024  # modules take time and memory also where their weights take none, on the meta device
_CALLS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")


def known(name: str) -> bool:
    """Whether a checkpoint may list a file of this name."""
    return name in KNOWN or TEMPLATE.fullmatch(name) is not None


def packed(name: str) -> bool:
    """Whether a pack may hold a file of this name."""
    return name == PACK or known(name) or any(pattern.fullmatch(name) for pattern in (_BACKBONE_FILE, _WHEEL))


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a repository by its listing.

    Raises:
        CheckpointError: a name that leaves the folder, pickled weights, or code; naming it.
    """
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise CheckpointError(f"{where}: file name {name!r} leaves the folder; nothing of it was read")
        if (suffix := path.suffix.lower()) in PICKLES:
            raise CheckpointError(f"{where}: holds {name}, which can be a pickle and run code when it is read; nothing was read")
        if suffix in CODE:
            raise CheckpointError(f"{where}: holds {name}, which is code; a model here is data only, nothing was read")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds pickled weights, modules that others would import, or links that lead out of it.

    Raises:
        CheckpointError: naming the file.
    """
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":  # the cache of huggingface_hub: its files are links to blobs beside it
        inside.append((folder.parent.parent / "blobs").resolve())
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(f"{path}: can be a pickle and run code when it is read; remove it from the checkpoint")
        if REMOTE_CODE.fullmatch(path.name):
            raise CheckpointError(f"{path}: is code that others would run; remove it from the checkpoint")
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise CheckpointError(f"{path}: is a link that leads out of the folder; put the file itself there")


def check_config(path: Path) -> None:
    """config.json says what this is, and neither it nor the tokenizer's names code.

    Raises:
        CheckpointError: naming the file and the key.
    """
    if not path.is_file():
        return
    data = read_json(path, MAX_CONFIG)
    if path.name == CONFIG and data.get("model_type") != "mmzoo":
        raise CheckpointError(f"{path}: model_type must be 'mmzoo', not {str(data.get('model_type'))[:80]!r}")
    waiting: list[Any] = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if found := next((key for key in _CALLS_CODE if value.get(key)), None):
                raise CheckpointError(f"{path}: '{found}' asks for code to be run; a model here is data only")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def walk(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key of a configuration and of what stands in it, with its value; an item of a list stands under the list's key.
    Names of labels are left out."""
    waiting: list[tuple[str, Any]] = list(data.items())
    while waiting:
        key, value = waiting.pop()
        yield str(key), value
        if isinstance(value, Mapping) and key not in ("id2label", "label2id"):
            waiting.extend(value.items())
        elif isinstance(value, list | tuple):
            waiting.extend((key, item) for item in value)


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a model's configuration that asks for more layers or labels than any model has: they would be made on the meta
    device, before their weights are compared with anything.

    Raises:
        ValueError: naming the key.
    """
    for key, value in walk(config):
        repeats = _REPEATED.search(key) is not None and _SIZES.search(key) is None
        limit = MAX_LABELS if key == "num_labels" else MAX_REPEATED if repeats else math.inf
        count = len(value) if isinstance(value, list | tuple) else value
        if isinstance(count, int | float) and count > limit:
            raise ValueError(f"{key}: {count} is more than {limit}")


def check_reach(config: Mapping[str, Any]) -> None:
    """Refuse a fetched configuration that makes the library fetch more: another repository's model, or a kernel, which is code.

    Raises:
        ValueError: naming the key.
    """
    for key, value in walk(config):
        if (key in FETCHED and value) or (_KERNELS.fullmatch(key) and isinstance(value, str) and "/" in value):
            raise ValueError(f"{key}: the library would fetch or run what it names ({str(value)[:80]!r})")


def check_card(path: Path) -> None:
    """The card is prose: it is never run here, and holds nothing that would run where it is shown.

    Raises:
        CheckpointError: naming what it holds.
    """
    if not path.is_file():
        return
    if path.stat().st_size > MAX_CARD:
        raise CheckpointError(f"{path}: larger than {MAX_CARD >> 20} MiB; that is no card")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if found := _SCRIPTS.search(text):
        raise CheckpointError(f"{path}: holds {found[0][:60]!r}, which would run where the card is shown")
    if head := _HEAD.match(text):
        if len(head[1]) > MAX_HEAD:
            raise CheckpointError(f"{path}: its metadata is larger than {MAX_HEAD >> 10} KiB")
        try:
            parsing.parse(head[1], as_yaml=True)
        except ValueError as error:
            raise CheckpointError(f"{path}: its metadata is not valid YAML: {error}") from None


def card_metadata(path: Path) -> dict[str, Any]:
    """The YAML of a card, empty if there is none.

    Raises:
        CheckpointError: as `check_card`.
    """
    check_card(path)
    head = _HEAD.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    data = parsing.parse(head[1], as_yaml=True) if head else {}
    return data if isinstance(data, dict) else {}


def inert(text: str) -> str:
    """Markdown in which nothing runs that `check_card` would refuse, and which no terminal obeys: words may be a stranger's."""
    return _SCRIPTS.sub(lambda found: found[0].replace("<", "&lt;").replace(":", "&#58;"), sanitize(text))


def read_json(path: Path, limit: int, *, numbers: bool = False) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes; ``numbers``: with NaN and infinity, as Python writes them.

    Raises:
        CheckpointError: it is missing, too large, or no JSON object.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would never end
            raise CheckpointError(f"{path}: is no regular file")
        if state.st_size > limit:
            raise CheckpointError(f"{path}: is {state.st_size} bytes; {limit} are allowed")
        data = parsing.parse(path.read_text(encoding="utf-8"), numbers=numbers)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; the checkpoint is incomplete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is truncated or not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return data
