"""Fetch and read the files of pretrained models, from a repository on the Hugging Face Hub or from a local folder.

Files of a repository all come from one commit. They are fetched with huggingface_hub (Apache-2.0), into its cache. Weights are
read from safetensors only, code in a repository is never run, and a folder is never written to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CacheNotFound, HfApi, constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from mmzoo.backbones import local_backbones
from mmzoo.backbones.hub_errors import check_connection, hub_error, is_final, root_cause
from mmzoo.backbones.weights import explain_errors, quiet
from mmzoo.checkpoints import screening
from mmzoo.checkpoints.screening import TOKENIZER_CONFIG
from mmzoo.common.files import hash_unchanged
from mmzoo.common.sanitize import one_line
from mmzoo.errors import MmzooError, SourceError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
FAST_TOKENIZER = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
SLOW_TOKENIZER = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

# Hugging Face's converter opens a pull request of this title where a repository has pickled weights only.
CONVERTER, CONVERTED = "SFconvertbot", "Adding `safetensors` variant of this model"

log = logging.getLogger(__name__)


def is_local(name: str) -> bool:
    """Return whether a `Source` of this name is a folder; also for one that is not there, if only a folder can have the name."""
    path = Path(name).expanduser()
    files = (CONFIG_FILE, FAST_TOKENIZER[0], *SLOW_TOKENIZER)
    return name.startswith((".", "/", "~")) or any((path / file).is_file() for file in files)


class Unreachable(SourceError):
    """Report that the Hub does not answer and the cache has no copy."""


class Source:
    """Represent a repository on the Hub, or a folder.

    Attributes:
        name: the repository's id, or the folder, as it was passed in.
        folder: the folder; None for a repository.
        commit: the commit that the files are taken from. None before the first file is fetched, and for a folder.
        files: the path of each file that was used, by name.
    """

    def __init__(self, name: str, revision: str | None = None, *, carried: Path | None = None) -> None:
        """Open a folder, or name a repository, of which nothing is fetched yet; a `SourceError` for a folder with a revision.

        Args:
            name, revision: a folder, or a repository's id and perhaps a branch, tag or commit.
            carried: a folder of a plugin, which has for some repositories the configurations, in ``owner--name/config.json``.
                Where no weights are wanted and no revision is named, they are used in place of the Hub's.
        """
        self.name, self.revision = name, revision
        self.commit: str | None = None
        self.files: dict[str, Path] = {}
        self._unreachable = ""
        self._carried: Path | None = None
        self._packed = local_backbones.find_local(name, revision)
        self._record = local_backbones.fetch_record(name, revision)
        if self._packed is not None:
            self.commit = self._packed.commit
            self.folder = None if self.commit else next(iter(self._packed.files.values())).parent
            return
        path = Path(name).expanduser()
        self.folder = path if path.is_dir() else None
        if self.folder is None and (name.startswith((".", "/", "~")) or path.exists()):
            raise SourceError(f"'{name}': there is no such folder; it must hold {CONFIG_FILE} and {WEIGHTS_FILE}")
        if self.folder is not None and revision is not None:
            raise SourceError(f"'{name}' is a folder and has no revision '{revision}'; leave '@{revision}' out")
        if carried is not None and self.folder is None and revision is None and local_backbones.uses_carried():
            self._carried = carried / name.replace("/", "--")

    # Files

    @property
    def is_carried(self) -> bool:
        """Return whether its files are, until another one is asked for, those that a plugin carries."""
        return self._carried is not None

    def get(self, name: str) -> Path | None:
        """Return the path of a file, fetched if necessary; None if the repository or folder has no such file.

        Raises:
            Unreachable: the Hub does not answer.
            SourceError: the repository cannot be used, or the disk is full.
        """
        if self._carried is not None:
            if (own := self._carried / name).is_file():
                return own
            self._carried = None  # from here on every file is the Hub's, so that all come from one commit
        if self._packed is not None:
            path = self._packed.files.get(name)
        elif self.folder is not None:
            path = self.folder / name if (self.folder / name).is_file() else None
        else:
            path = self._download(name)
        if path is not None:
            self.files[name] = self._record.files[name] = path
            self._record.commit = self.commit
        return path

    def find(self, name: str) -> Path | None:
        """Return the path of an optional file, as `get`; None also if the Hub does not answer, so that the cache is enough."""
        try:
            return self.get(name)
        except Unreachable:
            return None

    def need(self, name: str) -> Path:
        """Return the path of a required file, as `get`; a `SourceError` if there is no such file."""
        if (path := self.get(name)) is None:
            where = "the folder" if self.folder is not None else f"the repository at {self.commit or self.revision or 'main'}"
            raise SourceError(f"'{self.name}': {where} has no {name}")
        return path

    def _download(self, name: str) -> Path | None:
        """Return the path of a file in the library's cache; None if the repository has no such file."""
        revision, cached = self.commit or self.revision, None
        if self.commit or self._unreachable:
            cached = try_to_load_from_cache(self.name, name, revision=revision)
        if cached is not None and not isinstance(cached, str):  # the cache holds that the commit has no such file
            return None
        if cached is None and self._unreachable:  # another request would wait as long
            raise Unreachable(self._unreachable)
        try:
            if cached is None:
                check_connection(self.name, name, revision)
            path = Path(cached or hf_hub_download(self.name, name, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        except Exception as error:  # HTTP clients raise many types
            raise self._explain(error, name) from error
        if self.commit is None and path.parent.parent.name == "snapshots":
            self.commit = path.parent.name
        return path

    def _explain(self, error: Exception, name: str) -> MmzooError:
        """Return the error for a file that cannot be fetched. `Unreachable` is remembered, so that the Hub is not asked again."""
        cause = root_cause(error)
        is_missing = isinstance(cause, HFValidationError | RepositoryNotFoundError) and not isinstance(cause, GatedRepoError)
        subject = f"'{self.name}'" + (" (not a folder here)" if is_missing else "")
        options: Any = {"kind": SourceError if is_final(cause) else Unreachable, "alternative": "give a local folder"}
        explained = hub_error(cause, subject, self.name, item=name, revision=self.revision, **options)
        if isinstance(explained, Unreachable):
            self._unreachable = str(explained)
        return explained

    def json(self, name: str) -> dict[str, Any]:
        """Return the mapping in a JSON file; empty if there is no such file, a `SourceError` if it holds anything else."""
        if (path := self.find(name)) is None:
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"'{self.name}': {name} is not valid JSON: {one_line(error)}") from None
        if not isinstance(data, dict):
            raise SourceError(f"'{self.name}': {name} must hold a mapping, not a {type(data).__name__}")
        return data

    # What the files hold

    def config(self) -> PreTrainedConfig:
        """Return the configuration of the model.

        Raises:
            SourceError: it cannot be fetched or read, its type is not built into transformers, its weights are quantised, or it
                names kernels, code or backbones to fetch.
        """
        path = self.need(CONFIG_FILE)
        data = self.json(CONFIG_FILE)
        kind = data.get("model_type")
        why = ""
        if kind == "mmzoo":
            why = "is a whole model of mmzoo, not a part; mmzoo.load loads it, and `weights:` starts from it"
        elif kind in transformers.CONFIG_MAPPING:
            if data.get("quantization_config"):
                why = "holds quantised weights; choose the repository with the original ones"
        elif "auto_map" in data:
            why = "needs code from its repository, and mmzoo never runs such code"
        elif kind is None:
            timm = f" (perhaps `timm:{data['architecture']}`)" if "architecture" in data else ""
            why = f"is not a transformers model: its {CONFIG_FILE} has no model_type{timm}"
        else:
            newer = "a newer version may: pip install --upgrade transformers"
            why = f"is of the type '{kind}', which transformers {transformers.__version__} does not have; {newer}"
        if why:
            raise SourceError(f"'{self.name}' {why}")
        try:
            screening.check_sizes(data)
            screening.check_reach(data)
        except ValueError as error:
            raise SourceError(f"'{self.name}': {CONFIG_FILE}: {error}; choose another repository or folder") from None
        # Quiet, since it warns of ids of its own defaults.
        with explain_errors(f"'{self.name}': {CONFIG_FILE} cannot be used"), quiet():
            return AutoConfig.from_pretrained(str(path.parent), trust_remote_code=False)

    def weights(self, model: str, wanted: Callable[[str], bool] | None = None) -> list[Path]:
        """Return the safetensors files of the weights.

        If the main branch has only pickled weights, all files are taken from the Hub's own conversion to safetensors, if there
        is one.

        Args:
            model: the name of the model's class, for the message that says how to convert pickled weights.
            wanted: which tensors are needed, by name; None for all. Of several files only those that hold one are fetched.

        Raises:
            SourceError: there are none, or they cannot be fetched.
        """
        paths = self._weights(wanted)
        if not paths and self.folder is None and self.revision is None and (reference := self._converted()):
            log.info("'%s': main has no safetensors; taking the conversion %s by %s", self.name, reference, CONVERTER)
            self.revision, self.commit = reference, None
            self.files.clear()
            self._record.files.clear()
            self.need(CONFIG_FILE)
            paths = self._weights(wanted)
        if not paths:
            other = "" if self.folder is not None else f"Name a revision that has it ('{self.name}@refs/pr/1'), or: "
            raise SourceError(
                f"'{self.name}' has no {WEIGHTS_FILE}, and pickled weights are never loaded.\n"
                f"{other}if you trust it, convert it once:\n"
                f"  python -c \"from transformers import {model} as M; M.from_pretrained('{self.name}')"
                ".save_pretrained('converted')\"\nthen save its tokenizer or processor there too, and give ./converted"
            )
        return paths

    def _weights(self, wanted: Callable[[str], bool] | None) -> list[Path]:
        """Return the safetensors files at the current revision; empty if it has none."""
        if path := self.find(WEIGHTS_FILE):
            return [path]
        if self.find(INDEX):
            shards = self.json(INDEX).get("weight_map")
            shards = shards if isinstance(shards, dict) else {}
            names = sorted(set(shards.values()))
            if not names or any(not isinstance(n, str) or Path(n).name != n or not n.endswith(".safetensors") for n in names):
                raise SourceError(f"'{self.name}': {INDEX} is damaged")
            needed = {file for name, file in shards.items() if wanted is None or wanted(name)}
            return [self.need(n) for n in names if n in needed]
        for name in (WEIGHTS_FILE, INDEX):
            self.get(name)  # raises if the Hub did not answer
        return []

    def _converted(self) -> str | None:
        """Return the reference of the newest open conversion by the Hub's bot; of one in the cache if the Hub does not answer."""
        try:
            discussions = HfApi().get_repo_discussions(
                self.name, author=CONVERTER, discussion_type="pull_request", discussion_status="open"
            )
            numbers = [d.num for d in discussions if d.author == CONVERTER and d.title == CONVERTED]
        except Exception:  # HTTP clients raise many types
            cached = [ref.removeprefix("refs/pr/") for ref in _cached_references(self.name)]
            numbers = [int(number) for number in cached if number.isdigit()]
        return f"refs/pr/{max(numbers)}" if numbers else None

    def tokenizer(self) -> Any:
        """Return the tokenizer. An end token that only the model's configuration names is its end token, and also its padding
        token if it has none. A `SourceError` if it cannot be read."""
        present = [path for name in FAST_TOKENIZER if (path := self.find(name))]
        if not present or present[0].name != FAST_TOKENIZER[0]:
            slow = [path for name in SLOW_TOKENIZER if (path := self.find(name))]
            present += slow or [self.need(FAST_TOKENIZER[0])]
        self.find(CONFIG_FILE)  # names the tokenizer's class if tokenizer_config.json does not
        with explain_errors(f"'{self.name}': the tokenizer cannot be used"):
            tokenizer = AutoTokenizer.from_pretrained(str(present[0].parent), trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            tokenizer.eos_token = self._end_token(tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.sep_token
        if tokenizer.pad_token_id is None:
            raise SourceError(
                f"'{self.name}': the tokenizer has neither a padding nor an end token; set eos_token in its "
                "tokenizer_config.json, or choose another one"
            )
        return tokenizer

    def _end_token(self, tokenizer: Any) -> str | None:
        """Return the token that ends a text by the model's configuration; None if it names none that the tokenizer has."""
        for name in ("generation_config.json", CONFIG_FILE):
            data = self.json(name)
            for ends in (data.get("eos_token_id"), (data.get("text_config") or {}).get("eos_token_id")):
                for end in ends if isinstance(ends, list) else [ends]:
                    if isinstance(end, int) and 0 <= end < len(tokenizer):
                        return tokenizer.convert_ids_to_tokens(end)
        return None

    def portable_config(self) -> dict[str, Any]:
        """Return the data of config.json from which `mmzoo.backbones.transformers_models.config_of` makes the same configuration.

        What would name a path of this machine, or what a recipe may not name, is left out.
        """

        def kept(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: kept(item) for key, item in value.items() if key not in dropped}
            return [kept(item) for item in value] if isinstance(value, list) else value

        dropped = screening.REACHING | {"_name_or_path", "name_or_path", "transformers_version"}
        return kept(self.json(CONFIG_FILE))

    def lock(self) -> dict[str, Any]:
        """Return where the files came from, and the sha256 of each that was used."""
        files = {name: hash_unchanged(path) for name, path in sorted(self.files.items())}
        return {"source": "hub" if self.folder is None else "folder", "id": self.name, "commit": self.commit, "files": files}


def _cached_references(repository: str) -> list[str]:
    """Return the branches, tags and pull requests of a repository that the cache knows, such as ``refs/pr/1``."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    return [name for repo in repositories if (repo.repo_id, repo.repo_type) == (repository, "model") for name in repo.refs]
