"""A read-only Hub on loopback, small random checkpoints under the real names, and child processes that use it.

`huggingface_hub` reads ``HF_ENDPOINT`` when it is imported, so whatever talks to this server runs in a child process
(`run`), in the environment that `environment` makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

MAIN = "main"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")
LFS = ".safetensors"
CONVERTER, CONVERTED = "SFconvertbot", "Adding `safetensors` variant of this model"
CHUNK = 1 << 20


# The server


@dataclass(frozen=True)
class Request:
    """One request: ``path`` as it was sent, ``sent`` the bytes of the body that went back."""

    method: str
    path: str
    status: int
    sent: int

    @property
    def file(self) -> str | None:
        """The file that was asked for, None if it was something else."""
        _, found, rest = self.path.partition("/resolve/")
        return unquote(rest.partition("/")[2]) if found else None

    @property
    def weights(self) -> bool:
        """Whether it asked for weights, or for where they are."""
        return (self.file or "").endswith(WEIGHTS)


@dataclass
class Repository:
    """Commits to folders, and references (branches, pull requests) to commits. A commit keeps its id whatever happens
    to the files in its folder."""

    commits: dict[str, Path] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def folder(self, revision: str) -> tuple[str, Path] | None:
        commit = self.references.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hub:
    """What the server serves, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self._marks: dict[str, int] = {}
        self._lock = threading.Lock()

    def push(self, name: str, folder: Path, reference: str = MAIN) -> str:
        """Let ``reference`` of a repository be the content of ``folder``; older commits are served as before.

        Returns:
            The commit, derived from names and contents.
        """
        digest = hashlib.sha1(name.encode())
        for path in _files(folder):
            digest.update(f"\n{path.relative_to(folder).as_posix()} {oid(path)}".encode())
        commit = digest.hexdigest()
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = folder
        repository.references[reference] = commit
        return commit

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def mark(self, section: str) -> None:
        """Begin a section of the log. A child process does it by GET ``/mark/SECTION``."""
        with self._lock:
            self._marks[section] = len(self.requests)

    def section(self, name: str) -> list[Request]:
        """The requests from a mark to the next one."""
        names, marks = list(self._marks), [*self._marks.values(), None]
        at = names.index(name)
        return self.requests[marks[at] : marks[at + 1]]


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve each ``folder/owner/name`` as a repository whose main branch holds its files, and each
    ``folder/owner/name@refs+pr+1`` as that reference of it."""
    hub = Hub()
    for path in sorted(folder.glob("*/*")):
        name, _, reference = path.name.partition("@")
        hub.push(f"{path.parent.name}/{name}", path, reference.replace("+", "/") or MAIN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


_OIDS: dict[tuple[Path, int, int], str] = {}


def oid(path: Path) -> str:
    """What a repository calls a file's content: the SHA-256 of an LFS file, git's blob id of any other."""
    stat = path.stat()
    key = path, stat.st_size, stat.st_mtime_ns
    if key not in _OIDS:
        digest = hashlib.sha256() if path.suffix == LFS else hashlib.sha1(f"blob {stat.st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        _OIDS[key] = digest.hexdigest()
    return _OIDS[key]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._refuse(405, "ReadOnly", "this server is read-only")

    do_PUT = do_DELETE = do_POST

    def _answer(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")  # before unquoting, since revisions hold slashes
        if parts[0] == "mark":
            self.hub.mark(parts[1])
            self._send(200, b"", record=False)
        elif parts[:2] == ["api", "models"] and len(parts) > 3:
            self._api("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts[:3] and len(parts) > parts.index("resolve") + 2:
            at = parts.index("resolve")
            self._file("/".join(parts[:at]), unquote(parts[at + 1]), unquote("/".join(parts[at + 2 :])))
        else:
            self._refuse(404, "RepoNotFound", "Repository Not Found")

    def _repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None:
            self._refuse(404, "RepoNotFound", "Repository Not Found")
        return found

    def _revision(self, repository: Repository, revision: str) -> tuple[str, Path] | None:
        found = repository.folder(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _file(self, name: str, revision: str, file: str) -> None:
        if (repository := self._repository(name)) is None or (found := self._revision(repository, revision)) is None:
            return
        commit, folder = found
        path = folder / file
        headers = {"X-Repo-Commit": commit}
        if ".." in Path(file).parts or not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
            return
        size = path.stat().st_size
        headers |= {"ETag": f'"{oid(path)}"', "Accept-Ranges": "bytes"}
        if path.suffix == LFS:
            headers |= {"X-Linked-ETag": f'"{oid(path)}"', "X-Linked-Size": str(size)}
        first, last, status = 0, size - 1, 200
        if given := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(given[1]), min(int(given[2] or last), last), 206
            if first > last:
                self._refuse(416, "RangeNotSatisfiable", "Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._begin(status, last - first + 1, headers)
        sent = 0
        try:
            if self.command == "GET":
                with path.open("rb") as source:
                    source.seek(first)
                    while chunk := source.read(min(CHUNK, last - first + 1 - sent)):
                        self.wfile.write(chunk)
                        sent += len(chunk)
        except ConnectionError:
            self.close_connection = True
        finally:
            self.hub.record(Request(self.command, self.path, status, sent))

    def _api(self, name: str, rest: list[str]) -> None:
        if (repository := self._repository(name)) is None:
            return
        what, arguments = (rest[0] if rest else "revision"), [unquote(part) for part in rest[1:]]
        if what == "discussions":
            self._json(_discussions(repository))
            return
        revision = arguments[0] if arguments else MAIN
        if what not in ("revision", "tree"):
            self._refuse(404, "EntryNotFound", "Not Found")
        elif (found := self._revision(repository, revision)) is not None:
            commit, folder = found
            if what == "tree":
                self._json(_tree(folder, "/".join(arguments[1:])))
                return
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def _json(self, data: Any) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        more = {"Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), {**more, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, record: bool = True) -> None:
        self._begin(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)
        if record:
            self.hub.record(Request(self.command, self.path, status, len(body) if self.command != "HEAD" else 0))

    def _begin(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


def _tree(folder: Path, below: str) -> list[dict[str, Any]]:
    entries = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if below and not name.startswith(f"{below}/"):
            continue
        entry: dict[str, Any] = {"type": "file", "path": name, "oid": oid(path), "size": path.stat().st_size}
        if path.suffix == LFS:
            entry["lfs"] = {"oid": oid(path), "size": entry["size"], "pointerSize": 135}
        entries.append(entry)
    return entries


def _discussions(repository: Repository) -> dict[str, Any]:
    """Each pull request as the Hub's own conversion to safetensors."""
    numbers = [int(ref.removeprefix("refs/pr/")) for ref in repository.references if ref.startswith("refs/pr/")]
    found = [
        {
            "num": number,
            "title": CONVERTED,
            "author": {"name": CONVERTER},
            "status": "open",
            "isPullRequest": True,
            "createdAt": "2023-01-01T00:00:00.000Z",
            "repo": {"name": "", "type": "model"},
        }
        for number in sorted(numbers, reverse=True)
    ]
    return {"discussions": found, "count": len(found), "start": 0, "numClosedDiscussions": 0}


# Child processes

DROPPED = re.compile(r"(?i)(hf_|hugging|transformers_).*|.*_proxy")


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a child that has this Hub at ``url`` and its cache in ``home``."""
    kept = {key: value for key, value in os.environ.items() if not DROPPED.fullmatch(key)}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "OMP_NUM_THREADS": "1", **more}


def run(*arguments: str, env: Mapping[str, str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run python with ``arguments``."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout, check=False)


def run_script(script: str, *arguments: str, env: Mapping[str, str]) -> dict[str, Any]:
    """What a script printed in its last line, as JSON.

    Raises:
        AssertionError: it failed; with what it said.
    """
    done = run("-c", script, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Checkpoints. The configurations of these types are by default those of the real checkpoints; `tiny` is laid over.

_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE = {**_TINY, "image_size": 32, "patch_size": 8}
_TEXT = {**_TINY, "vocab_size": 264, "max_position_embeddings": 256}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEEN = {"size": {"height": 32, "width": 32}}


def _gpt2_stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the head, and with the causal masks."""
    import torch

    stored = {name.removeprefix("transformer."): value for name, value in state.items() if not name.startswith("lm_head")}
    context = stored["wpe.weight"].shape[0]
    mask = torch.ones(1, 1, context, context).tril()
    blocks = sum(name.endswith("ln_1.weight") for name in stored)
    return {**stored, **{f"h.{i}.attn.bias": mask.clone() for i in range(blocks)}}


def _bert_stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """With TensorFlow's names of the norms."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.(weight|bias)$", lambda found: names[found[0]], key): v for key, v in state.items()}


@dataclass(frozen=True)
class Model:
    """How a checkpoint is made: the class of its weights, the configuration of the real one where that is not the
    type's default, what makes it tiny, and how the real one differs from what the library would write."""

    model: str
    config: str
    real: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    processor: str = ""
    tiny_processor: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    stored: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    conversion: int = 0  # the pull request that has its safetensors, where main has pickled weights only


MODELS = {
    "openai/clip-vit-base-patch32": Model(
        "CLIPModel",
        "CLIPConfig",
        tiny={
            "text_config": {**_TEXT, **_IDS, "projection_dim": 24},
            "vision_config": {**_IMAGE, "projection_dim": 24},
            "projection_dim": 24,
        },
        processor="CLIPImageProcessor",
        tiny_processor={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        tokenizer="causal",
        conversion=66,
    ),
    "google/siglip-base-patch16-224": Model(
        "SiglipModel",
        "SiglipConfig",
        tiny={"text_config": {**_TEXT, **_IDS, "projection_size": 32}, "vision_config": _IMAGE},
        processor="SiglipImageProcessor",
        tiny_processor=_SEEN,
        tokenizer="causal",
    ),
    "google/vit-base-patch16-224": Model(
        "ViTForImageClassification",
        "ViTConfig",
        real={"num_labels": 1000},
        tiny={**_IMAGE, "num_labels": 10},
        processor="ViTImageProcessor",
        tiny_processor=_SEEN,
    ),
    "openai-community/gpt2": Model(
        "GPT2LMHeadModel",
        "GPT2Config",
        tiny={"vocab_size": 264, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2, **_IDS},
        tokenizer="causal",
        stored=_gpt2_stored,
    ),
    "HuggingFaceTB/SmolLM2-135M": Model(
        "LlamaForCausalLM",
        "LlamaConfig",
        real={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        tiny={**_TEXT, **_IDS, "num_key_value_heads": 1, "head_dim": 16},
        tokenizer="causal",
    ),
    "facebook/opt-125m": Model(
        "OPTForCausalLM",
        "OPTConfig",
        tiny={
            **_IDS,
            "vocab_size": 264,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
        },
        tokenizer="causal",
        conversion=52,
    ),
    "google-bert/bert-base-uncased": Model(
        "BertForMaskedLM", "BertConfig", tiny=_TEXT, tokenizer="bidirectional", stored=_bert_stored
    ),
    "google-t5/t5-small": Model(
        "T5ForConditionalGeneration",
        "T5Config",
        tiny={
            "vocab_size": 264,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
        },
        tokenizer="seq2seq",
    ),
}


def make(folder: Path, name: str, *, seed: int = 0, real_size: bool = False) -> Path:
    """Write a random checkpoint of the architecture that ``name`` has, with its tokenizer and image processor, to
    ``folder``.

    The tokenizer is one of bytes, and without a padding token for GPT-2, whose own has none.
    """
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    from mmzoo_transformers.bytes import byte_tokenizer

    made = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, made.config)(**{**made.real, **({} if real_size else made.tiny)})
    getattr(transformers, made.model)(config).save_pretrained(folder)
    if made.stored is not None:
        path = folder / "model.safetensors"
        state = {key: value.clone() for key, value in load_file(path).items()}  # load_file maps what is written below
        save_file(made.stored(state), path, {"format": "pt"})
    if made.processor:
        options = {} if real_size else made.tiny_processor
        getattr(transformers, made.processor)(**options).save_pretrained(folder)
    if made.tokenizer:
        tokenizer = byte_tokenizer(made.tokenizer)
        if "gpt2" in name:
            tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    return folder


def pickle_weights(folder: Path) -> Path:
    """Replace a checkpoint's safetensors by ``pytorch_model.bin``."""
    import torch
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    torch.save({key: value.clone() for key, value in load_file(path).items()}, folder / "pytorch_model.bin")
    path.unlink()
    return folder


def make_hub(folder: Path, *names: str) -> Path:
    """Tiny checkpoints under the real ``names`` (all if none is given), for `serve`: where the real repository has
    pickled weights on its main branch, and safetensors in a pull request only, so has this one."""
    for name in names or MODELS:
        if number := MODELS[name].conversion:
            make(folder / f"{name}@refs+pr+{number}", name)
            pickle_weights(make(folder / name, name))
        else:
            make(folder / name, name)
    return folder
