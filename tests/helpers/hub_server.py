"""A Hub on loopback that can be written to: what `huggingface_hub` asks for when it creates, commits, tags and lists, with
private repositories, tokens, and faults that a test asks for. Reading is `tests/helpers/hub.py`'s."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from hub import LFS, MAIN, Hub, Repository, Request, _files, _Handler, oid

TOKEN, READER = "hf_writertokenAAAA", "hf_readertokenBBBB"
USER = "me"


@dataclass
class Fault:
    """What goes wrong the next ``times`` that ``method`` asks for a path that ``path`` is found in.

    ``status`` is an answer; ``cut`` closes the connection: "before" anything was done, in the "middle" of reading or sending a
    body, or "after" it was done; ``slow`` waits so many seconds, ``hang`` until the hub is `released`.
    """

    method: str
    path: str
    status: int = 0
    cut: str = ""
    slow: float = 0.0
    hang: bool = False
    times: int = 1


@dataclass
class Store(Repository):
    """A repository that can be written to."""

    private: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)


class WritableHub(Hub):
    """What it serves, who may write, and what shall go wrong."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.objects = folder / "lfs"
        self.objects.mkdir(parents=True)
        self.faults: list[Fault] = []
        self.before_commit: Any = None  # called once, before the next commit is made
        self.moved: dict[str, str] = {}  # repositories that were renamed: asking for one is answered with 307
        self.open = threading.RLock()
        self.released = threading.Event()
        self.bodies: list[bytes] = []
        self.validated: list[str] = []

    def fail(self, method: str, path: str, **how: Any) -> None:
        self.faults.append(Fault(method, path, **how))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.open:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def create(self, name: str, *, private: bool = False) -> Store:
        store = Store(private=private)
        self.repositories[name] = store
        folder = self.folder / "commits" / name / "0"
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text(f"*{LFS} filter=lfs\n")
        self.advance(name, folder, MAIN)
        return store

    def advance(self, name: str, folder: Path, branch: str) -> str:
        store = self.repositories[name]
        listing = "".join(f"{p.relative_to(folder)} {oid(p)}\n" for p in _files(folder))
        old = store.references.get(branch, "")
        commit = hashlib.sha1(f"{name}\n{old}\n{len(store.commits)}\n{listing}".encode()).hexdigest()
        store.commits[commit], store.parents[commit] = folder, old
        store.references[branch] = commit
        return commit

    def head(self, name: str, branch: str = MAIN) -> str:
        return self.repositories[name].references[branch]

    def names(self, name: str, revision: str = MAIN) -> list[str]:
        found = self.repositories[name].folder(revision)
        assert found is not None
        return [path.relative_to(found[1]).as_posix() for path in _files(found[1])]

    def writes(self) -> list[Request]:
        return [r for r in self.requests if r.method in ("POST", "PUT")]


class _Writing(_Handler):
    hub: WritableHub

    def do_HEAD(self) -> None:
        self._with_faults(self._guarded)

    do_GET = do_HEAD

    def do_POST(self) -> None:
        self._with_faults(self._post)

    def do_PUT(self) -> None:
        self._with_faults(self._put)

    # Who asks

    def _user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {TOKEN: "writer", READER: "reader"}.get(given, "wrong" if given else None)

    def _refused(self, *, write: bool) -> bool:
        user = self._user()
        if user == "wrong" or (write and user is None):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif write and user != "writer":
            self._refuse(403, "", "Forbidden: you must use a write token")
        else:
            return False
        return True

    def _repository(self, name: str) -> Repository | None:
        store = self.hub.repositories.get(name)
        if isinstance(store, Store) and store.private and self._user() not in ("writer", "reader"):
            self._refuse(401 if self._user() is None else 404, "RepoNotFound", "Repository Not Found")
            return None
        return super()._repository(name)

    def _revision(self, repository: Repository, revision: str) -> tuple[str, Path] | None:
        if isinstance(repository, Store):
            revision = repository.tags.get(revision, revision)
        return super()._revision(repository, revision)

    # What goes wrong

    def _with_faults(self, answer: Any) -> None:
        self.fault = self.hub.fault(self.command, self.path) or Fault("", "")
        time.sleep(self.fault.slow)
        if self.fault.hang:
            self.hub.released.wait(120)
            self.close_connection = True
            return
        self.body = b""
        if self.fault.cut == "before":
            self._hang_up()
            return
        if self.fault.cut == "middle" and self.command in ("POST", "PUT"):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._hang_up()
            return
        if self.command in ("POST", "PUT"):
            self.body = self._body()
        moved = next((old for old in self.hub.moved if re.search(rf"^/(api/models/)?{re.escape(old)}(/|$|\?)", self.path)), None)
        if self.fault.status:
            self._refuse(self.fault.status, "", f"fault {self.fault.status}")
        elif moved is not None:
            self._send(307, b"", {"Location": self.path.replace(moved, self.hub.moved[moved], 1)})
        else:
            answer()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _hang_up(self) -> None:
        self.hub.record(Request(self.command, self.path, 0, 0))
        self.close_connection = True
        self.connection.shutdown(2)

    def _begin(self, status: int, length: int, headers: Any) -> None:
        if self.fault.cut == "after":
            self._hang_up()
            raise ConnectionAbortedError
        super()._begin(status, length, headers)

    def _file(self, name: str, revision: str, file: str) -> None:
        if self.fault.cut != "middle" or self.command != "GET":
            super()._file(name, revision, file)
            return
        _, folder = self.hub.repositories[name].folder(revision) or ("", Path())
        data = (folder / file).read_bytes()
        self._begin(200, len(data), {"ETag": f'"{oid(folder / file)}"'})
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self._hang_up()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True

    # Answers

    def _guarded(self) -> None:
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            if not self._refused(write=True):
                auth = {"type": "access_token", "accessToken": {"role": "write"}}
                self._json({"type": "user", "name": USER, "orgs": [], "auth": auth})
        elif self._user() == "wrong":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif parts == ["api", "models"]:
            self._models(parse_qs(query))
        elif parts[:2] == ["api", "models"] and parts[4:5] in (["refs"], ["commits"]):
            if (store := self._repository("/".join(parts[2:4]))) is not None:
                self._refs(store) if parts[4] == "refs" else self._commits(store, unquote(parts[5]))
        else:
            self._answer()

    def _api(self, name: str, rest: list[str]) -> None:
        if rest[:1] in ([], ["revision"]):
            if (store := self._repository(name)) is None:
                return
            if (found := self._revision(store, unquote(rest[1]) if rest[1:] else MAIN)) is not None:
                self._json(self._info(name, *found))
            return
        super()._api(name, rest)

    def _info(self, name: str, commit: str, folder: Path) -> dict[str, Any]:
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
        card = _card_data(folder)
        tags = [*card.get("tags", []), *([card["library_name"]] if "library_name" in card else [])]
        private = getattr(self.hub.repositories[name], "private", False)
        info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": tags, "private": private}
        return {**info, "cardData": card, "library_name": card.get("library_name")}

    def _models(self, query: dict[str, list[str]]) -> None:
        wanted = set(query.get("filter", []))
        found = []
        for name, store in self.hub.repositories.items():
            if getattr(store, "private", False) and self._user() is None:
                continue
            info = self._info(name, *store.folder(MAIN))
            if wanted <= set(info["tags"]) and all(text.lower() in name.lower() for text in query.get("search", [])):
                found.append(info)
        self._json(found[: int(query.get("limit", ["100"])[0])])

    def _refs(self, store: Any) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in store.references.items()
            if not name.startswith("refs/")
        ]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in getattr(store, "tags", {}).items()]
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _commits(self, store: Any, revision: str) -> None:
        found, commit = [], store.references.get(revision, revision)
        while commit:
            found.append({"id": commit, "title": "a commit", "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"})
            commit = store.parents.get(commit)
        self._json(found)

    def _post(self) -> None:
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            self._validate(json.loads(self.body)["content"])
            return
        if self._refused(write=True):
            return
        if parts == ["api", "repos", "create"]:
            self._create(json.loads(self.body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(self.body))
        elif parts[:2] == ["api", "models"] and len(parts) > 5:
            name, what, revision = "/".join(parts[2:4]), parts[4], unquote(parts[5])
            if (store := self._repository(name)) is None:
                return
            answer = {"preupload": self._preupload, "commit": self._commit, "tag": self._tag, "branch": self._branch}
            with self.hub.open:
                answer[what](name, store, revision, create_pr="create_pr=1" in query)
        else:
            self._refuse(404, "EntryNotFound", "Not Found")

    def _validate(self, text: str) -> None:
        errors = card_errors(text)
        self.hub.validated.append(text)
        if errors and "text/plain" in self.headers.get("Accept", ""):
            self._send(400, "\n".join(errors).encode())
        elif errors:
            self._send(400, json.dumps({"errors": [{"message": error} for error in errors], "warnings": []}).encode())
        else:
            self._json({"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        with self.hub.open:
            if name in self.hub.repositories:
                self._send(409, json.dumps({**url, "error": "You already created this model repo"}).encode())
                return
            self.hub.create(name, private=asked.get("visibility") == "private")
        self._json(url)

    def _preupload(self, name: str, store: Any, revision: str, **_: Any) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular", "shouldIgnore": False}
            for f in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for thing in asked["objects"]:
            found = {"oid": thing["oid"], "size": thing["size"]}
            if not (self.hub.objects / thing["oid"]).exists():
                href = f"{self.hub.url}/upload/{thing['oid']}?signature={_sign(thing['oid'])}"
                found["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(found)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        assert "Authorization" not in self.headers, "a signed upload carries no token"
        if query != f"signature={_sign(name)}" or hashlib.sha256(self.body).hexdigest() != name:
            self._refuse(403, "", "wrong signature or content")
            return
        (self.hub.objects / name).write_bytes(self.body)
        self._send(200, b"")

    def _commit(self, name: str, store: Any, revision: str, *, create_pr: bool) -> None:
        if self.hub.before_commit is not None:
            meanwhile, self.hub.before_commit = self.hub.before_commit, None
            meanwhile()
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = store.references.get(revision)
        if head is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if (parent := lines[0]["value"].get("parentCommit")) and parent != head:
            self._refuse(412, "", "A commit has happened since. Please refresh and try again.")
            return
        made = self.hub.folder / "commits" / name / str(len(store.commits))
        shutil.copytree(store.commits[head], made, copy_function=os.link)
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            target = made / value["path"]
            target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                shutil.copyfile(self.hub.objects / value["oid"], target)
        branch = revision
        answer = {}
        if create_pr:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in store.references)
            branch = f"refs/pr/{number}"
            store.references[branch] = head
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        commit = self.hub.advance(name, made, branch)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}", **answer})

    def _tag(self, name: str, store: Any, revision: str, **_: Any) -> None:
        tag = json.loads(self.body)["tag"]
        if tag in store.tags:
            self._refuse(409, "", "Tag already exists")
        elif (found := self._revision(store, revision)) is not None:
            store.tags[tag] = found[0]
            self._json({})

    def _branch(self, name: str, store: Any, branch: str, **_: Any) -> None:
        if branch in store.references:
            self._refuse(409, "", "Reference already exists")
        else:
            start = json.loads(self.body or b"{}").get("startingPoint", MAIN)
            store.references[branch] = store.references.get(start, start)
            self._json({})


def _sign(name: str) -> str:
    return hashlib.sha256(f"secret {name}".encode()).hexdigest()


# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
    artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
    epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0
    odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma
    unknown other
"""


def card_errors(text: str) -> list[str]:
    """What the Hub finds wrong with a card, as far as is written down: 'model-index', 'datasets' and 'license' are looked at
    (https://github.com/huggingface/hub-docs/blob/main/modelcard.md), and a license that is 'other' has a name."""
    try:
        data = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except yaml.YAMLError as error:
        return [str(error)]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    found = []
    licenses = data.get("license", [])
    for license in licenses if isinstance(licenses, list) else [licenses]:
        if license not in LICENSES.split():
            found.append(f'"license" must be one of the known ones, not "{license}"')
    if data.get("license") == "other" and not data.get("license_name"):
        found.append('"license_name" is required with the license "other"')
    for name in data.get("datasets", []):
        if not (isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)):
            found.append(f'"datasets" with value "{name}" is not valid')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            found.append('"model-index[].name" and "results" are required')
        for result in model.get("results") or []:
            for key, needed in (("task", ["type"]), ("dataset", ["type", "name"])):
                found += [
                    f'"model-index[].results[].{key}.{name}" is required'
                    for name in needed
                    if not isinstance(result.get(key, {}).get(name), str)
                ]
            if not result.get("metrics"):
                found.append('"model-index[].results[].metrics" is required')
            for metric in result.get("metrics") or []:
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                    found.append('"model-index[].results[].metrics[]" needs a type and a value')
                if not isinstance(metric.get("args", {}), dict) or not isinstance(metric.get("name", ""), str):
                    found.append('"model-index[].results[].metrics[].args" must be a mapping, and "name" a text')
    return found


def _card_data(folder: Path) -> dict[str, Any]:
    path = folder / "README.md"
    text = path.read_text() if path.is_file() else ""
    data = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    return data if isinstance(data, dict) else {}


class _Mirror(_Writing):
    """Answers GET and HEAD alone."""

    def do_POST(self) -> None:
        self._body()  # or it would be taken for the next request
        _Handler.do_POST(self)

    do_PUT = do_POST


@contextmanager
def serve_writable(folder: Path | None = None, *, mirror: WritableHub | None = None) -> Iterator[WritableHub]:
    """A Hub whose repositories are in ``folder``, and without any at first; or a read-only ``mirror`` of one."""
    hub = WritableHub(folder or Path(tempfile.mkdtemp()))
    if mirror is not None:
        hub.repositories, hub.moved = mirror.repositories, mirror.moved
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Mirror if mirror else _Writing,), {"hub": hub}))
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
