"""Where a checkpoint's files come from: a repository on the Hugging Face Hub, pinned to one commit, or a local folder.

Follows the cache layout of huggingface_hub (Apache-2.0). Weights are read from safetensors only, code that comes with
a repository is never run, and a folder is never written to.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import _CACHED_NO_EXIST, HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from mmzoo.backbones import local_backbones
from mmzoo.backbones.local_backbones import sha256
from mmzoo.checkpoints import screening
from mmzoo.errors import MmzooError, SourceError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
FAST_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SLOW_TOKENIZER = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

# Hugging Face's converter opens a pull request of this title where a repository has pickled weights only.
CONVERTER, CONVERTED = "SFconvertbot", "Adding `safetensors` variant of this model"

log = logging.getLogger(__name__)


class Unreachable(SourceError):
    """The Hub does not answer, and the cache has no copy."""


class Source:
    """A repository on the Hub, or a folder.

    Attributes:
        name: the repository's id, or the folder as it was given.
        folder: the folder; None for a repository.
        commit: what the repository's files are pinned to from the first one on; None before, and for a folder.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        """
        Raises:
            SourceError: a path where there is no folder, or a folder with a revision.
        """
        self.name = name
        self.revision = revision
        self.commit: str | None = None
        self.files: dict[str, Path] = {}
        self._unreachable = ""
        self._packed = local_backbones.find_local(name, revision)
        self._record = local_backbones.fetch_record(name, revision)
        if self._packed is not None:
            self.commit = self._packed.commit
            self.folder = None if self.commit else self._packed.folder
            return
        path = Path(name).expanduser()
        self.folder = path if path.is_dir() else None
        if self.folder is None and (name.startswith((".", "/", "~")) or path.exists()):
            raise SourceError(f"'{name}': there is no such folder; it must hold {CONFIG_FILE} and {WEIGHTS_FILE}")
        if self.folder is not None and revision is not None:
            raise SourceError(f"'{name}' is a folder and has no revision '{revision}'; leave '@{revision}' out")

    # Files

    def get(self, name: str) -> Path | None:
        """The path of a file; None if the repository or folder has none of that name.

        Raises:
            Unreachable: the Hub does not answer. SourceError: anything else that is wrong with the repository.
        """
        if self._packed is not None:
            found = self._packed.files.get(name)
        elif self.folder is not None:
            path = self.folder / name
            found = path if path.is_file() else None
        else:
            found = self._download(name)
        if found is not None:
            self.files[name] = self._record.files[name] = found
            self._record.commit = self.commit
        return found

    def find(self, name: str) -> Path | None:
        """As `get`, for a file that one can do without: None too if the Hub does not answer, so that a complete
        cache needs no network."""
        try:
            return self.get(name)
        except Unreachable:
            return None

    def need(self, name: str) -> Path:
        """As `get`, for a file that must be there.

        Raises:
            SourceError: there is none.
        """
        path = self.get(name)
        if path is None:
            where = "the folder" if self.folder is not None else f"the repository at {self.commit or self.revision or 'main'}"
            raise SourceError(f"'{self.name}': {where} has no {name}")
        return path

    def _download(self, name: str) -> Path | None:
        page = f"{constants.ENDPOINT}/{self.name}"
        cached = None
        if self.commit or self._unreachable:
            cached = try_to_load_from_cache(self.name, name, revision=self.commit or self.revision)
        if cached is _CACHED_NO_EXIST:
            return None
        if cached is None and self._unreachable:  # asking again would take as long again
            raise Unreachable(self._unreachable)
        try:
            path = Path(cached or hf_hub_download(self.name, name, revision=self.commit or self.revision))
        except RemoteEntryNotFoundError:
            return None
        except GatedRepoError:
            raise SourceError(f"'{self.name}' is gated: accept its terms at {page}, then log in with `hf auth login`") from None
        except RepositoryNotFoundError:
            raise SourceError(
                f"'{self.name}' is neither a folder here nor a repository at {constants.ENDPOINT}; check the name, or log "
                "in with `hf auth login` if it is private"
            ) from None
        except RevisionNotFoundError:
            raise SourceError(f"'{self.name}' has no revision '{self.revision}'; {page}/commits/main lists them") from None
        except HFValidationError as error:
            raise SourceError(f"'{self.name}' is neither a folder here nor an id 'owner/name': {one_line(error)}") from None
        except Exception as error:  # an HTTP client without a network raises what it likes
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise SourceError(
                    f"'{self.name}': {name} cannot be stored in {constants.HF_HUB_CACHE}: {one_line(error)}"
                ) from None
            if constants.is_offline_mode():
                why = "HF_HUB_OFFLINE is set, and the cache has no copy; unset it, or download it before"
            else:
                why = f"{one_line(error)}\nCheck the connection to {constants.ENDPOINT}, or give a local folder"
            self._unreachable = f"'{self.name}': {name} could not be fetched: {why}"
            raise Unreachable(self._unreachable) from error
        if self.commit is None and path.parent.parent.name == "snapshots":
            self.commit = path.parent.name
        return path

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's mapping; empty if there is no such file."""
        path = self.find(name)
        if path is None:
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"'{self.name}': {name} is not valid JSON: {one_line(error)}") from None
        if not isinstance(data, dict):
            raise SourceError(f"'{self.name}': {name} is no mapping")
        return data

    # What is in them

    def config(self) -> PreTrainedConfig:
        """The configuration.

        Raises:
            SourceError: it cannot be fetched or read, is of a type that is not built in, or of quantised weights.
        """
        path = self.need(CONFIG_FILE)
        data = self.json(CONFIG_FILE)
        kind = data.get("model_type")
        if kind == "mmzoo":
            raise SourceError(
                f"'{self.name}' is a model of mmzoo and no part of one; mmzoo.load loads it, and `weights:` starts from it"
            )
        if kind not in transformers.CONFIG_MAPPING:
            if "auto_map" in data:
                why = "needs code from its repository, and mmzoo never runs such code"
            elif kind is None:
                why = f"is no transformers model: its {CONFIG_FILE} has no model_type"
                if "architecture" in data:
                    why += f" (perhaps `timm:{data['architecture']}`)"
            else:
                why = f"is of the type '{kind}', which transformers {transformers.__version__} does not have; a newer may"
            raise SourceError(f"'{self.name}' {why}")
        if data.get("quantization_config"):
            raise SourceError(f"'{self.name}' holds quantised weights; choose the repository with the full ones")
        try:
            screening.check_sizes(data)
            screening.check_reach(data)
        except ValueError as error:
            raise SourceError(f"'{self.name}': {CONFIG_FILE}: {error}; choose another repository or folder") from None
        with explain_errors(f"'{self.name}': {CONFIG_FILE} cannot be used"):
            return AutoConfig.from_pretrained(str(path.parent), trust_remote_code=False)

    def weights(self, model: str) -> list[Path]:
        """The safetensors files, for a class named ``model``. Where the repository's main branch has pickled weights
        only, the source moves, whole, to the commit of the Hub's own conversion, if there is one.

        Raises:
            SourceError: there are none, or they cannot be fetched.
        """
        paths = self._weights()
        if not paths and self.folder is None and self.revision is None and (reference := self._converted()):
            log.info("'%s': main has no safetensors; taking the conversion %s by %s", self.name, reference, CONVERTER)
            self.revision, self.commit = reference, None
            self.files.clear()
            self._record.files.clear()
            self.need(CONFIG_FILE)
            paths = self._weights()
        if not paths:
            other = "" if self.folder is not None else f"Name a revision that has it ('{self.name}@refs/pr/1'), or: "
            raise SourceError(
                f"'{self.name}' has no {WEIGHTS_FILE}, and pickled weights are never loaded.\n"
                f"{other}if you trust it, convert it once:\n"
                f"  python -c \"from transformers import {model} as M; M.from_pretrained('{self.name}')"
                ".save_pretrained('converted')\"\nthen save its tokenizer or processor there too, and give ./converted"
            )
        return paths

    def _weights(self) -> list[Path]:
        unreachable = None
        for name in (WEIGHTS_FILE, INDEX):
            try:
                path = self.get(name)
            except Unreachable as error:
                unreachable = error
                continue
            if path is None:
                continue
            if name == WEIGHTS_FILE:
                return [path]
            shards = self.json(INDEX).get("weight_map")
            names = sorted(set(shards.values())) if isinstance(shards, dict) and shards else []
            if not names or any(not isinstance(n, str) or Path(n).name != n or not n.endswith(".safetensors") for n in names):
                raise SourceError(f"'{self.name}': {INDEX} is damaged")
            return [self.need(n) for n in names]
        if unreachable is not None:
            raise unreachable
        return []

    def _converted(self) -> str | None:
        """The reference of the newest open conversion by Hugging Face's bot, or of one in the cache where the Hub does
        not answer; None if there is none."""
        try:
            found = HfApi().get_repo_discussions(
                self.name, author=CONVERTER, discussion_type="pull_request", discussion_status="open"
            )
            numbers = [d.num for d in found if d.author == CONVERTER and d.title == CONVERTED]
        except Exception:  # an HTTP client without a network raises what it likes
            folder = repo_folder_name(repo_id=self.name, repo_type="model")
            refs = Path(constants.HF_HUB_CACHE, folder, "refs", "refs", "pr").glob("*")
            numbers = [int(ref.name) for ref in refs if ref.name.isdigit()]
        return f"refs/pr/{max(numbers)}" if numbers else None

    def tokenizer(self) -> Any:
        """The tokenizer of these files, with a padding token: the end token where it has none of its own.

        Raises:
            SourceError: there is none, or it cannot be read.
        """
        found = [self.find(name) for name in FAST_TOKENIZER]
        if found[0] is None:
            found = [*found, *(self.find(name) for name in SLOW_TOKENIZER)]
        present = [path for path in found if path is not None]
        if not any(path.name not in FAST_TOKENIZER[1:] for path in present):
            self.need(FAST_TOKENIZER[0])
        self.find(CONFIG_FILE)  # it names the tokenizer's class where tokenizer_config.json does not
        with explain_errors(f"'{self.name}': the tokenizer cannot be used"):
            tokenizer = AutoTokenizer.from_pretrained(str(present[0].parent), trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise SourceError(f"'{self.name}': the tokenizer has neither a padding nor an end token; choose another one")
        return tokenizer

    def lock(self) -> dict[str, Any]:
        """Where the files came from, and the SHA-256 of each that was used."""
        return {
            "source": "hub" if self.folder is None else "folder",
            "id": self.name,
            "commit": self.commit,
            "files": {name: sha256(path) for name, path in sorted(self.files.items())},
        }


def one_line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else text[:297] + "...") or type(error).__name__


@contextmanager
def explain_errors(what: str, kind: type[MmzooError] = SourceError) -> Iterator[None]:
    """Turn whatever a library raises into an error of this package that begins with ``what``."""
    try:
        yield
    except MmzooError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise what they like at a damaged file
        raise kind(f"{what}: {type(error).__name__}: {one_line(error)}") from error
