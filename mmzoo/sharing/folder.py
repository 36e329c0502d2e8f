"""Serve models from a plain folder or an object store, as a hub does: ``file:///zoo/me/name``, ``s3://bucket/zoo/me/name``.

    REVISION/            the files of one checkpoint; its name is derived from their names and sha256
    branches/main        the revision that is the newest of a branch
    tags/v1              the revision that a tag names

A push writes the files of a revision, then its manifest ``mmzoo.json``, then the file in ``branches/``. A revision without a
manifest is incomplete: it is ignored, and the next push of the same content completes it. A complete revision is never changed
or removed. So two pushes at once lose nothing: both revisions are complete, and the last push to finish is the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import MAX_JSON, FileFacts, file_facts, is_checkpoint, read_manifest, verify_checkpoint
from mmzoo.checkpoints.screening import CARD, MANIFEST, MAX_CARD
from mmzoo.common.files import cache_folder
from mmzoo.common.progress import bar
from mmzoo.errors import CheckpointError, HubError
from mmzoo.sharing.repository import MAIN, Files, Pushed, SharedModel, staging
from mmzoo.sharing.store import Store

BRANCHES, TAGS = "branches", "tags"
MAX_POINTER = 100  # bytes
SEARCHES_AT_ONCE = 8  # an object store takes some 50 ms for an answer, however small
_REVISION = re.compile(r"[0-9a-f]{40}")


class FolderRepository:
    """Represent one model repository in a store; ``name`` is its URL."""

    def __init__(self, store: Store) -> None:
        self.store, self.name = store, store.url

    # Pulling

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """Return the verified folder of a revision, as `Remote.fetch`. A folder that is a checkpoint has one revision, main."""
        commit = self._resolve(revision or MAIN)
        facts, _ = self._describe(commit)
        target = to or self._cached(facts)
        if to is None and is_checkpoint(target):
            try:
                verify_checkpoint(target)
                return target
            except CheckpointError:  # damaged since it was pulled
                shutil.rmtree(target, ignore_errors=True)
        with staging(target) as staged, bar(f"pulling {self.name}", len(facts)) as progress:
            for name, expected in facts.items():
                self._download(f"{commit}/{name}" if commit else name, staged / name, expected)
                progress.advance()
            verify_checkpoint(staged)
        return target.expanduser()

    def _cached(self, facts: Mapping[str, FileFacts]) -> Path:
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(self.store.root).name)[:80]
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_folder() / "pulled" / f"{name}-{digest}" / revision_of(facts)

    def _resolve(self, name: str) -> str:
        """Return the revision of a branch, tag or abbreviated revision; an empty string for a folder that is a checkpoint."""
        for kind in (BRANCHES, TAGS):
            if commit := self._pointer(kind, name):
                return commit
        if self.store.is_file(MANIFEST):
            if name != MAIN:
                raise HubError(f"{self.name}: is a single checkpoint; it has no revision '{name}'")
            return ""
        entries = self.store.names()
        revisions = [entry for entry in entries if _REVISION.fullmatch(entry)]

        def complete(prefix: str) -> list[str]:
            return [entry for entry in revisions if entry.startswith(prefix) and self.store.is_file(f"{entry}/{MANIFEST}")]

        if len(name) >= 7 and len(matches := complete(name)) == 1:
            return matches[0]
        names = sorted(unquote(entry) for kind in (BRANCHES, TAGS) for entry in self.store.names(kind))
        if not (names := [*names, *(entry[:12] for entry in complete(""))]):
            raise HubError(f"{self.name}: there is no such repository; check the name, or `mmzoo push MODEL {self.name}`")
        raise HubError(f"{self.name}: has no revision '{name}'; there are: {', '.join(names)}")

    def _pointer(self, kind: str, name: str) -> str | None:
        """Return the revision that a branch or tag names, None if there is no such branch or tag."""
        path = _pointer_path(kind, name)
        if (content := self.store.read(path, MAX_POINTER)) is None:
            return None
        if not _REVISION.fullmatch(commit := content.decode("ascii", errors="replace").strip()):
            raise HubError(f"{self.name}: {path} does not name a revision; delete this file, and push again")
        return commit

    def _describe(self, commit: str) -> tuple[dict[str, FileFacts], dict[str, Any]]:
        """Return size and sha256 of each file of a revision, and the metadata of its card. Only manifest and card are read.

        The names and sizes in the store must be those of the manifest, and the hashes must give the name of the revision.
        """
        sizes = self.store.sizes(commit)
        # Somebody's own checkpoint folder may have folders in it with the state of an optimizer; these are not fetched.
        screening.check_names([name for name in sizes if commit or "/" not in name], self.name)
        if MANIFEST not in sizes:
            raise HubError(f"{self.name}: revision {commit} has no {MANIFEST}, so it is incomplete; push it again")
        facts = {}
        with TemporaryDirectory(prefix="mmzoo-") as temporary:
            for name, limit in ((MANIFEST, MAX_JSON), (CARD, MAX_CARD)):
                if name in sizes:
                    path = Path(temporary, name)
                    path.write_bytes(self.store.read(f"{commit}/{name}" if commit else name, limit) or b"")
                    facts[name] = file_facts(path)
            try:
                facts |= read_manifest(Path(temporary)).files
                metadata = screening.card_metadata(Path(temporary, CARD))
            except CheckpointError as error:
                raise CheckpointError(f"{self.name}: {str(error).replace(f'{temporary}{os.sep}', '')}") from None
        if commit not in ("", revision_of(facts)):
            raise CheckpointError(f"{self.name}: revision {commit} was altered after it was pushed (its hash does not match)")
        for name, expected in facts.items():
            if (size := sizes.get(name)) != expected.size:
                problem = "is missing" if size is None else f"is {size} bytes, {expected.size} were pushed"
                raise CheckpointError(f"{self.name}: {name} {problem}; nothing was downloaded. Push it again")
        return facts, metadata

    def _download(self, source: str, target: Path, expected: FileFacts) -> None:
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in self.store.chunks(source):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != expected.sha256:
            raise CheckpointError(f"{self.name}: {source} was altered after it was pushed (its sha256 is another); push it again")

    # Pushing

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """Write a revision and make it the newest of a branch, as `Remote.send`.

        ``private`` makes a new local folder readable to its owner alone. A pull request is a branch, ``refs/pr/REVISION``.
        """
        facts = {name: file_facts(path) for name, path in files.items()}
        commit = revision_of(facts)
        branch = f"refs/pr/{commit[:12]}" if create_pr else revision or MAIN
        if self.store.is_file(MANIFEST):
            raise HubError(f"{self.name}: is a checkpoint, not a repository of them; push to another name")
        if branch != MAIN and self._pointer(TAGS, branch):
            raise HubError(f"{self.name}: '{branch}' is a tag; a push goes to a branch")
        if tag is not None and self._pointer(TAGS, tag) not in (None, commit):
            raise self._tag_error(tag)
        if private:
            self._make_private()
        newest = self._pointer(BRANCHES, branch)
        sent = self._upload(files, facts, commit, newest or self._pointer(BRANCHES, MAIN))
        if tag and not self.store.create(_pointer_path(TAGS, tag), commit.encode()) and self._pointer(TAGS, tag) != commit:
            raise self._tag_error(tag)  # another push took it meanwhile
        if newest != commit:
            self.store.write(_pointer_path(BRANCHES, branch), commit.encode())
        return Pushed(self.name, branch, commit, self.name, sent, [name for name in facts if name not in sent])

    def _tag_error(self, tag: str) -> HubError:
        return HubError(f"{self.name}: tag '{tag}' exists already, for another revision, and does not move; choose another tag")

    def _make_private(self) -> None:
        if not self.store.local:
            raise HubError(f"{self.name}: private is for the Hub and local folders; restrict who may read the bucket instead")
        folder = Path(self.store.root)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            mode = folder.stat().st_mode
        except OSError as error:
            raise HubError(f"{self.name}: cannot be written: {error.strerror}; check your permissions") from None
        if mode & 0o077:
            raise HubError(f"{self.name}: exists and others can read it; push to another name, or chmod 700 it")

    def _upload(self, files: Files, facts: Mapping[str, FileFacts], commit: str, newest: str | None) -> list[str]:
        """Complete a revision, its manifest last, and return the names of the files that were sent.

        A file that is there, from an interrupted push or in the ``newest`` revision, is not sent again if its sha256 is right.
        """
        sizes, sent, earlier = self.store.sizes(commit), [], dict[str, FileFacts]()
        with suppress(HubError, CheckpointError):
            if newest not in (None, commit):
                earlier, _ = self._describe(str(newest))
        with bar(f"pushing to {self.name}", len(files)) as progress:
            for name in sorted(files, key=lambda name: (name == MANIFEST, name)):
                old, new, expected = f"{newest}/{name}", f"{commit}/{name}", facts[name]
                if sizes.get(name) == expected.size and self.store.sha256(new) == expected.sha256:
                    pass
                elif earlier.get(name) == expected and self.store.sha256(old) == expected.sha256:
                    self.store.copy(old, new)
                else:
                    self.store.write(new, files[name])
                    sent.append(name)
                progress.advance()
        return sorted(sent)

    # Searching

    def summarize(self) -> SharedModel | None:
        """Return what a search lists of the newest revision, None if it holds no model that can be read."""
        try:
            facts, metadata = self._describe(self._resolve(MAIN))
        except (HubError, CheckpointError):
            return None
        tags = [str(tag) for tag in _list(metadata.get("tags"))]
        return SharedModel(self.name, revision_of(facts), tags + [f"dataset:{name}" for name in _list(metadata.get("datasets"))])


def revision_of(facts: Mapping[str, FileFacts]) -> str:
    """Return the name of a revision: 40 hex digits of the sha256 over the names and hashes of its files."""
    hashes = {name: expected.sha256 for name, expected in facts.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:40]


def search(zoo: Store, query: str | None, tags: list[str], limit: int) -> list[SharedModel]:
    """Return the models of a folder of ``owner/name`` folders; a `HubError` if there is no such folder."""
    names = []
    for owner in zoo.names():
        try:
            names += [f"{owner}/{name}" for name in zoo.names(owner)]
        except HubError as error:  # such as lost+found on a disk of its own
            print(f"warning: {error}", file=sys.stderr)
    if not names and not zoo.exists():
        raise HubError(f"{zoo.url}: there is no such folder")
    repositories = [FolderRepository(zoo.child(name)) for name in names if not query or query.lower() in name.lower()]
    with ThreadPoolExecutor(SEARCHES_AT_ONCE) as pool:
        models = [model for model in pool.map(FolderRepository.summarize, repositories) if model and set(tags) <= set(model.tags)]
    return models[:limit]


def _pointer_path(kind: str, name: str) -> str:
    return f"{kind}/{quote(name, safe='')}"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
