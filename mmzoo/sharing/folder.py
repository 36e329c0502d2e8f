"""A plain folder or network share that serves models as a hub does, for people without one: ``file:///zoo/me/name``.

    objects/SHA256                each distinct file once
    commits/COMMIT.json           which files a commit holds; COMMIT is the hash of that list, so equal content is one commit
    refs/heads/BRANCH/000001/     the history of a branch: each step a folder with one file, ``commit``
    refs/tags/TAG/000001/         a tag has one step

A step is renamed into place under the next free number, which no file system lets two do. So a branch moves by one step or
not at all, without locks that a killed process would leave behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, ValidationError

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import FileFacts, hash_file, is_checkpoint, umask, verify_checkpoint
from mmzoo.checkpoints.screening import CARD, MANIFEST
from mmzoo.common.files import cache_folder
from mmzoo.common.progress import bar
from mmzoo.errors import CheckpointError, HubError
from mmzoo.sharing.repository import MAIN, Files, Pushed, SharedModel, staging

MAX_COMMIT = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"\d{6}")


class Commit(BaseModel):
    """What a commit holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: str
    files: dict[str, FileFacts]

    @property
    def id(self) -> str:
        files = {name: facts.sha256 for name, facts in self.files.items()}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:40]


class FolderRepository:
    """One model repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"file://{quote(folder.as_posix())}"

    # Pulling

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """As `Remote.fetch`. A folder that is a checkpoint itself has one revision, main.

        Raises:
            HubError, CheckpointError.
        """
        if is_checkpoint(self.folder):
            if revision not in (None, MAIN):
                raise HubError(f"{self.name}: is a single checkpoint; it has no revision '{revision}'")
            files, sources = self._plain()
            commit = Commit(message="", files=files).id
        else:
            commit = self._find(revision)
            files = self._read(commit).files
            sources = {name: self.folder / "objects" / facts.sha256 for name, facts in files.items()}
        screening.check_names(files, self.name)
        # Nothing else is written here: .git/config, say, would run commands where somebody uses git in the folder.
        if strange := [name for name in files if not screening.known(name)]:
            raise CheckpointError(f"{self.name}: holds {strange[0]!r}, which is no file of a checkpoint; nothing was fetched")
        if MANIFEST not in files:
            raise HubError(f"{self.name}: commit {commit} has no {MANIFEST}, so it is no model of mmzoo")
        target = to or self._cached() / commit
        if to is None and is_checkpoint(target):
            try:
                verify_checkpoint(target)
                return target
            except CheckpointError:  # damaged since: fetched anew
                shutil.rmtree(target, ignore_errors=True)
        with staging(target) as made, bar(f"pulling {self.name}", len(files)) as shown:
            for name, source in sources.items():
                self._copy(source, made / name, files[name], name)
                shown.advance()
            verify_checkpoint(made)
        return target.expanduser()

    def _plain(self) -> tuple[dict[str, FileFacts], dict[str, Path]]:
        files = dict(verify_checkpoint(self.folder).files)
        for name in (MANIFEST, CARD):
            if (path := self.folder / name).is_file():
                files[name] = FileFacts(size=path.stat().st_size, sha256=hash_file(path))
        return files, {name: self.folder / name for name in files}

    def _cached(self) -> Path:
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_folder() / "pulled" / f"{self.folder.name}-{digest}"

    def _copy(self, source: Path, target: Path, facts: FileFacts, name: str) -> None:
        where = f"{self.name}: {name}"
        if source.is_symlink() or not source.is_file():
            raise CheckpointError(f"{where}: is {'a link' if source.is_symlink() else 'missing'} ({source.name[:12]}...)")
        if (size := source.stat().st_size) != facts.size:
            raise CheckpointError(f"{where}: is {size} bytes, {facts.size} were pushed; push it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if hash_file(target) != facts.sha256:
            raise CheckpointError(f"{where}: was altered after it was pushed (its sha256 does not match); push it again")

    def _find(self, revision: str | None) -> str:
        """The commit that a branch, tag, commit or its first seven digits stand for."""
        if not (self.folder / "refs").is_dir():
            raise HubError(f"{self.name}: there is no such repository; check the name, or `mmzoo push MODEL {self.name}`")
        chosen = revision or MAIN
        for kind in ("heads", "tags"):
            if found := self._head(kind, chosen):
                return found
        if re.fullmatch(r"[0-9a-f]{7,40}", chosen):
            known = [path.stem for path in (self.folder / "commits").glob(f"{chosen}*.json")]
            if len(known) == 1 and _COMMIT.fullmatch(known[0]):
                return known[0]
        names = sorted(unquote(path.name) for path in self.folder.glob("refs/*/*"))
        raise HubError(f"{self.name}: has no revision '{chosen}'; there are: {', '.join(names) or 'none'}")

    def _steps(self, kind: str, name: str) -> list[Path]:
        folder = self.folder / "refs" / kind / quote(name, safe="")
        return sorted(path for path in folder.glob("[0-9]*") if _STEP.fullmatch(path.name))

    def _head(self, kind: str, name: str) -> str | None:
        steps = self._steps(kind, name)
        if not steps:
            return None
        path = steps[-1] / "commit"
        try:
            if path.exists() and not path.is_file():  # a pipe would never end
                raise HubError(f"{path}: is no regular file")
            with path.open(encoding="utf-8") as file:
                commit = file.read(100).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HubError(f"{steps[-1]}: cannot be read: {error}") from None
        if not _COMMIT.fullmatch(commit):
            raise HubError(f"{path}: does not name a commit")
        return commit

    def _read(self, commit: str) -> Commit:
        path = self.folder / "commits" / f"{commit}.json"
        data = screening.read_json(path, MAX_COMMIT)
        try:
            found = Commit.model_validate(data)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise CheckpointError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        if found.id != commit:
            raise CheckpointError(f"{path}: was altered after it was pushed (it is no longer the commit that it is named after)")
        return found

    def found(self) -> SharedModel | None:
        """What a search says of it; None if it holds no model that can be read."""
        try:
            if is_checkpoint(self.folder):
                files, sources = self._plain()
                commit, card = Commit(message="", files=files).id, sources.get(CARD)
            else:
                commit = self._find(None)
                facts = self._read(commit).files.get(CARD)
                card = self.folder / "objects" / facts.sha256 if facts else None
            data = screening.card_metadata(card) if card else {}
        except (HubError, CheckpointError):
            return None
        tags = [str(tag) for tag in _list(data.get("tags"))] + [f"dataset:{name}" for name in _list(data.get("datasets"))]
        return SharedModel(self.name, commit, tags)

    # Pushing

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """As `Remote.send`. ``private`` makes a new repository readable to its owner alone.

        Raises:
            HubError: the branch moved meanwhile, or the folder cannot be written; the branch is then where it was.
        """
        if is_checkpoint(self.folder):
            raise HubError(f"{self.name}: is a checkpoint, not a repository of them; push to another name")
        branch = revision or MAIN
        try:
            if private and self.folder.exists() and self.folder.stat().st_mode & 0o077:
                raise HubError(f"{self.name}: exists and others can read it; push to another name, or chmod 700 it")
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
            if create_pr:
                branch = self._request()
            elif not create_pr and branch != MAIN and self._steps("tags", branch):
                raise HubError(f"{self.name}: '{branch}' is a tag; a push goes to a branch")
            steps = self._steps("heads", branch)
            old = self._head("heads", branch)
            facts = {name: _facts(path) for name, path in files.items()}
            new = Commit(message=message, files=facts)
            sent = [name for name, fact in facts.items() if self._keep(files[name], fact)]
            if new.id != old:
                path = self.folder / "commits" / f"{new.id}.json"
                _write(path, json.dumps(new.model_dump(), indent=2).encode())
                self._step("heads", branch, len(steps) + 1, new.id)
            if tag is not None and self._head("tags", tag) != new.id:
                self._step("tags", tag, 1, new.id)
        except OSError as error:
            raise HubError(
                f"{self.name}: cannot be written: {error.strerror or error}; branch '{branch}' is where it was"
            ) from None
        unchanged = [name for name in facts if name not in sent]
        return Pushed(self.name, branch, new.id, self.name, sent, unchanged)

    def _request(self) -> str:
        """The branch of a new pull request, numbered as the Hub does."""
        taken = [int(unquote(p.name).rpartition("/")[2]) for p in self.folder.glob("refs/heads/refs%2Fpr%2F[0-9]*")]
        return f"refs/pr/{max(taken, default=0) + 1}"

    def _keep(self, source: Path, facts: FileFacts) -> bool:
        """Copy a file in, unless it is there whole; whether it was copied."""
        target = self.folder / "objects" / facts.sha256
        if target.is_file() and target.stat().st_size == facts.size and hash_file(target) == facts.sha256:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".new-", delete=False) as made:
            pass
        try:
            shutil.copyfile(source, made.name)
            os.chmod(made.name, 0o666 & ~umask())
            os.replace(made.name, target)
        finally:
            Path(made.name).unlink(missing_ok=True)
        return True

    def _step(self, kind: str, name: str, number: int, commit: str) -> None:
        """Move a branch to ``commit`` as step ``number``, if nobody took that one."""
        folder = self.folder / "refs" / kind / quote(name, safe="")
        made: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
            made.chmod(0o777 & ~umask())
            (made / "commit").write_text(commit + "\n", encoding="utf-8")
            os.rename(made, folder / f"{number:06d}")
        except OSError as error:
            # What is said where the step is taken differs by system; where it is free, something else is wrong.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) and (folder / f"{number:06d}").exists():
                why = f"tag '{name}' is there already" if kind == "tags" else f"someone else pushed to '{name}' meanwhile"
                raise HubError(f"{self.name}: {why}; look at their commit, then push again") from None
            left = f"branch '{name}' is where it was" if kind == "heads" else f"commit {commit[:12]} is there without the tag"
            raise HubError(
                f"{self.name}: refs/{kind}/{quote(name, safe='')}: cannot be written: {error.strerror or error}; {left}. "
                "It needs room and write permission"
            ) from None
        finally:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)


def search(folder: Path, query: str | None, tags: list[str], limit: int) -> list[SharedModel]:
    """The models of a folder of ``owner/name`` folders."""
    models = (FolderRepository(path).found() for path in sorted(folder.glob("*/*")) if path.is_dir())
    found = [model for model in models if model and set(tags) <= set(model.tags)]
    return [model for model in found if not query or query.lower() in "/".join(model.repo.lower().split("/")[-2:])][:limit]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _facts(path: Path) -> FileFacts:
    return FileFacts(size=path.stat().st_size, sha256=hash_file(path))


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as made:
        try:
            made.write(data)
        except OSError:
            Path(made.name).unlink(missing_ok=True)
            raise
    os.chmod(made.name, 0o666 & ~umask())
    os.replace(made.name, path)
