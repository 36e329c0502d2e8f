"""A repository on the Hugging Face Hub, or on whatever answers as it does (``HF_ENDPOINT``), through `huggingface_hub`."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    RepoFile,
    constants,
    get_session,
    get_token,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from yaml import YAMLError

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import MAX_JSON, FileFacts, check_file, read_manifest, verify_checkpoint
from mmzoo.checkpoints.screening import CARD, MANIFEST
from mmzoo.errors import CheckpointError, HubError, MmzooError
from mmzoo.sharing.repository import MAIN, Files, Pushed, SharedModel, staging

LIBRARY = "mmzoo"
MAX_MANIFEST = MAX_JSON
TRIES, WAIT = 4, 1.0
TIMEOUT = 60.0  # seconds without a byte; the client itself waits for ever in an upload
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SECRET = re.compile(r"hf_[A-Za-z0-9_]{6,}|(?i:bearer)\s+\S+")


class _Api(HfApi):
    """The client without its own look at the card, which fails the commit where only that look fails; `_check_card` is ours."""

    def _validate_yaml(self, content: str, **_: Any) -> None:
        pass


class HubRepository:
    """One model repository, ``owner/name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.api = _Api(library_name=LIBRARY, library_version=version("mmzoo"))
        self.url = f"{constants.ENDPOINT}/{name}"

    # Pulling

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """As `Remote.fetch`. Only the files that the manifest lists are downloaded, and none before its size is compared.

        Raises:
            HubError, CheckpointError.
        """
        commit, names = self._resolve(revision)
        if to is None:
            return self._download(commit, names, None)
        with staging(to) as made:
            self._download(commit, names, made)
            shutil.rmtree(made / ".cache", ignore_errors=True)  # of huggingface_hub
        return to.expanduser()

    def _resolve(self, revision: str | None) -> tuple[str, list[str] | None]:
        """The commit, and the names in it; None in place of them if only the cache can be asked."""
        try:
            with self._talking(f"revision '{revision}'" if revision else "it", revision):
                info = self._info(revision)
        except HubError as error:
            cached = try_to_load_from_cache(self.name, MANIFEST, revision=revision or MAIN)
            if not (isinstance(error.__cause__, Exception) and _transient(error.__cause__) and isinstance(cached, str)):
                raise
            commit = Path(cached).parent.name
            if not constants.is_offline_mode():
                print(f"warning: {str(error).splitlines()[0]}; using commit {commit[:12]} of the cache", file=sys.stderr)
            return commit, None
        names = [file.rfilename for file in info.siblings or []]
        screening.check_names(names, self.url)
        if MANIFEST not in names:
            raise HubError(
                f"{self.url}: has no {MANIFEST}, so it is no model of mmzoo; `mmzoo push` shares one, and a backbone "
                f"is named in a recipe, such as hf-causal:{self.name}"
            )
        if info.sha is None:
            raise HubError(f"{self.url}: the hub does not say which commit '{revision or MAIN}' is")
        _remember(self.name, revision or MAIN, info.sha)
        return info.sha, names

    def _download(self, commit: str, names: list[str] | None, to: Path | None) -> Path:
        size = self._size(MANIFEST, commit)
        if size > MAX_MANIFEST:
            raise CheckpointError(f"{self.url}: {MANIFEST} is {size} bytes; {MAX_MANIFEST} are allowed")
        folder = self._file(MANIFEST, commit, to).parent
        manifest = read_manifest(folder)
        for name, facts in manifest.files.items():
            if names is not None and name not in names:
                raise CheckpointError(f"{self.url}: {name} is missing; the checkpoint is incomplete")
            if (size := self._size(name, commit)) != facts.size:
                raise CheckpointError(f"{self.url}: {name} is {size} bytes, {facts.size} were saved; it was not downloaded")
        for name, facts in manifest.files.items():
            self._file(name, commit, to)
            try:
                check_file(folder, name, facts)
            except CheckpointError:
                self._again(name, commit, to, facts)
        if names is None or CARD in names:
            with suppress(HubError):  # in a cache that was filled by other means the card may be missing
                if self._size(CARD, commit) > screening.MAX_CARD:
                    raise CheckpointError(f"{self.url}: {CARD} is larger than {screening.MAX_CARD >> 20} MiB; that is no card")
                self._file(CARD, commit, to)
        verify_checkpoint(folder)
        return folder

    def _size(self, name: str, commit: str) -> int:
        with self._talking(name, commit):
            return hf_hub_download(self.name, name, revision=commit, dry_run=True).file_size or 0

    def _file(self, name: str, commit: str, to: Path | None, *, anew: bool = False) -> Path:
        with self._talking(name, commit):
            return Path(
                hf_hub_download(self.name, name, revision=commit, local_dir=to, force_download=anew, library_name=LIBRARY)
            )

    def _again(self, name: str, commit: str, to: Path | None, facts: FileFacts) -> None:
        """A file whose hash is wrong is fetched once more, and not left in the cache if it is wrong again."""
        path = self._file(name, commit, to, anew=not constants.is_offline_mode())
        try:
            check_file(path.parent, path.name, facts)
        except CheckpointError as error:
            if to is None:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise CheckpointError(f"{self.url}: {name}: {str(error).partition(': ')[2]}") from None

    # Pushing

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """As `Remote.send`. The commit names its parent, so that a push beside this one is noticed and not overwritten.

        Raises:
            HubError: saying what was refused; the branch is then at the commit that it was at.
        """
        names, branch = list(files), revision or MAIN
        new = self._prepare(files, private=private, branch=branch, create=not create_pr)
        with self._talking("it", branch):
            head = self._info(branch).sha
            there = self._listing(head)
        screening.check_names(there, self.url)
        sent = [name for name in names if there.get(name) != _oid(files[name], there.get(name))]
        gone = [name for name in there if name not in names and screening.known(name)]
        unchanged = [name for name in names if name not in sent]
        if CARD in sent and not new:
            self._check_card(files[CARD])
        if not sent and not gone:
            commit, url = str(head), f"{self.url}/commit/{head}"
        else:
            commit, url = self._commit(files, sent, gone, branch, head, create_pr, message)
            self._confirm(files, commit if not create_pr else None)
        if tag is not None:
            with self._talking(f"tag '{tag}'", branch):
                self.api.create_tag(self.name, tag=tag, revision=commit)
        return Pushed(self.name, branch, commit, url, sent, unchanged)

    def _prepare(self, files: Files, *, private: bool, branch: str, create: bool) -> bool:
        """Make the repository and the branch if need be; whether the repository is new. Its card was looked at then, since a
        repository that stays empty would be left behind."""
        info = None
        with self._talking("it", branch):
            try:
                info = self._info(None)
            except RepositoryNotFoundError as error:
                if not create or isinstance(error, GatedRepoError):
                    raise
        if info is None:
            if CARD in files:
                self._check_card(files[CARD])
            with self._talking("creating it"):
                self.api.create_repo(self.name, private=private or None, exist_ok=True)
        elif private and info.private is False:
            raise HubError(f"{self.url}: exists and is public; make it private in its settings, or push to another name")
        if branch != MAIN and not branch.startswith("refs/") and create:
            with self._talking(f"branch '{branch}'"):
                refs = self.api.list_repo_refs(self.name)
                if any(found.name == branch for found in refs.tags):
                    raise HubError(f"{self.url}: '{branch}' is a tag; a push goes to a branch")
                if not any(found.name == branch for found in refs.branches):
                    self.api.create_branch(self.name, branch=branch, exist_ok=True)
        return info is None

    def _check_card(self, path: Path) -> None:
        """Ask the hub whether it takes a card, before anything is sent. A hub that cannot say, or has no such check, is no reason
        not to push: what it does not take it refuses at the commit.

        Raises:
            HubError: with the hub's words.
        """
        try:
            with _patient():
                ModelCard(path.read_text(encoding="utf-8")).validate()
        except (ValueError, YAMLError) as error:
            raise HubError(
                f"{self.url}: the hub does not take the card: {_clean(str(error))}. Correct the metadata of {CARD}; nothing was "
                "sent"
            ) from None
        except OfflineModeIsEnabled:
            return  # the next step says so
        except Exception as error:
            print(f"warning: {self.url}: the hub could not check the card ({_clean(str(error))})", file=sys.stderr)

    def _info(self, revision: str | None) -> ModelInfo:
        return self.api.model_info(self.name, revision=revision, timeout=_patience())

    def _listing(self, commit: str | None) -> dict[str, str]:
        """Each file's name to what the Hub calls its content."""
        found = {}
        for file in self.api.list_repo_tree(self.name, recursive=True, revision=commit):
            if isinstance(file, RepoFile):
                found[file.path] = file.lfs.sha256 if file.lfs else file.blob_id
        return found

    def _commit(
        self, files: Files, sent: list[str], gone: list[str], branch: str, head: str | None, create_pr: bool, message: str
    ) -> tuple[str, str]:
        for attempt in range(1, TRIES + 1):
            operations: list[Any] = [
                *(CommitOperationAdd(name, files[name]) for name in sent),
                *(CommitOperationDelete(name) for name in gone),
            ]
            try:
                with self._talking("the commit", branch, old=head):
                    done = self.api.create_commit(
                        self.name, operations, commit_message=message, revision=branch, parent_commit=head, create_pr=create_pr
                    )
                    return done.oid, done.pr_url or done.commit_url
            except HubError as error:
                cause = error.__cause__
                if not isinstance(cause, Exception) or not _transient(cause):
                    raise
                if not create_pr and (landed := self._landed(files, sent, gone, branch, head)):
                    return landed, f"{self.url}/commit/{landed}"  # only the answer was lost
                if attempt == TRIES or _timed_out(cause) or (create_pr and _status(cause) is None):
                    raise
                time.sleep(WAIT * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _landed(self, files: Files, sent: list[str], gone: list[str], branch: str, head: str | None) -> str | None:
        """The commit of a push whose answer was lost, None if the branch is where it was.

        Raises:
            HubError: someone else moved the branch meanwhile.
        """
        try:
            now = self._info(branch).sha
            if now == head:
                return None
            there = self._listing(now)
        except Exception:  # whatever made the commit fail may go on; the next attempt says so
            return None
        if all(there.get(name) == _oid(files[name], there.get(name)) for name in sent) and not set(gone) & set(there):
            return now
        raise HubError(_moved(self.url, branch))

    def _confirm(self, files: Files, commit: str | None) -> None:
        """A file that the repository ignores (.gitignore) is left out of a commit without a word."""
        if commit is None:
            return
        with self._talking("the new commit", commit):
            there = self._listing(commit)
        if lost := [name for name in files if there.get(name) != _oid(files[name], there.get(name))]:
            raise HubError(f"{self.url}: commit {commit} does not hold {lost[0]} as it was sent; does its .gitignore name it?")

    # Errors

    @contextmanager
    def _talking(self, what: str, revision: str | None = None, *, old: str | None = None) -> Iterator[None]:
        """Whatever the client raises becomes a `HubError`, without any token in it; it waits no longer than `TIMEOUT`."""
        try:
            with _patient():
                yield
        except MmzooError:
            raise
        except Exception as error:
            raise self._error(error, what, revision, old) from _plain(error)

    def _error(self, error: Exception, what: str, revision: str | None, old: str | None) -> MmzooError:
        error = _plain(error)
        status, label = _status(error), self.url if what == "it" else f"{self.url}: {what}"
        kept = f" The repository is still at commit {old[:12]}." if old else ""
        if isinstance(error, HFValidationError):
            return HubError(f"'{self.name}' is no repository: write owner/name, of letters, digits, '-', '_' and '.'")
        if isinstance(error, GatedRepoError):
            return HubError(f"{label}: is gated: accept its terms at {self.url}, then log in with `hf auth login`")
        if isinstance(error, RevisionNotFoundError):
            return HubError(f"{self.url}: has no revision '{revision}'; {self.url}/commits/main lists them")
        if isinstance(error, OfflineModeIsEnabled) or (constants.is_offline_mode() and status is None):
            return HubError(f"{label}: is not in the cache, and HF_HUB_OFFLINE is set; unset it, or pull before going offline")
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            return HubError(
                f"{label}: the hub does not accept the token (401); log in anew with `hf auth login`, or set HF_TOKEN"
            )
        if isinstance(error, RepositoryNotFoundError):
            known = "log in with an account that may see it" if get_token() else "log in with `hf auth login` if it is private"
            return HubError(f"{self.url}: there is no such repository, or it is private; check the name, or {known}")
        if isinstance(error, EntryNotFoundError):
            return HubError(f"{label}: is not there at revision '{revision}'")
        if status is not None:
            return HubError(f"{label}: {_REASONS.get(status) or _reason(status, error)}".format(branch=revision or MAIN) + kept)
        if _of_disk(error):
            return CheckpointError(f"{label}: cannot be written: {error}; free some space, or set HF_HOME to another disk")
        if _timed_out(error):
            return HubError(
                f"{label}: {constants.ENDPOINT} does not answer in time.{kept} Check the connection, or try again later"
            )
        said = _clean(f"{type(error).__name__}: {error}")
        return HubError(f"{label}: the connection to {constants.ENDPOINT} failed ({said}).{kept} Check it and try again")


_REASONS = {
    403: "this token may not do that (403); use one with write permission (`hf auth login`), or --create-pr",
    404: "is not there (404)",
    405: "takes no changes (405), as a read-only mirror does; set HF_ENDPOINT to the hub itself",
    409: "conflicts with what is there (409); another operation on it is going on, so try again in a moment",
    412: "someone else pushed to '{branch}' meanwhile (412); look at their commit, then push again",
    413: "is too large for the hub (413)",
    429: "too many requests (429); wait a few minutes and try again",
}


def search(query: str | None, tags: list[str], limit: int) -> list[SharedModel]:
    """The models of the Hub with ``library_name: mmzoo``."""
    hub = HubRepository("search")
    hub.url = constants.ENDPOINT
    with hub._talking("the search"):
        models = hub.api.list_models(filter=[LIBRARY, *tags], search=query, limit=limit)
        return [SharedModel(model.id, model.sha or "", list(model.tags or [])) for model in models]


def _moved(url: str, branch: str) -> str:
    return f"{url}: {_REASONS[412]}".format(branch=branch)


def _reason(status: int, error: Exception) -> str:
    if status >= 500:
        return f"the hub has a fault ({status}); nothing is wrong here, so try again later"
    return f"the hub refused ({status}): {_clean(str(error))}"


def _plain(error: BaseException) -> Exception:
    """The error itself: an upload wraps what went wrong in a RuntimeError, a lookup in a LocalEntryNotFoundError."""
    while isinstance(error, RuntimeError | FileNotFoundError) and error.__cause__ is not None and _status(error) is None:
        error = error.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return getattr(response, "status_code", None)


def _of_disk(error: BaseException) -> bool:
    """Whether the fault is in a file here: no space left, a quota, no permission."""
    here = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    return isinstance(error, OSError) and _status(error) is None and error.errno in here


def _patience() -> float:
    return max(TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextmanager
def _patient() -> Iterator[None]:
    """The client waits for each answer of the block as long as this package does."""
    session = get_session()
    before, session.timeout = session.timeout, _patience()
    try:
        yield
    finally:
        session.timeout = before


def _timed_out(error: BaseException) -> bool:
    return "TimeoutException" in {cls.__name__ for cls in type(error).__mro__}


def _transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if (status := _status(error)) is not None:
        return status in TRANSIENT
    if _of_disk(error):
        return False
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"})


def _clean(text: str) -> str:
    """One short line, without a token in it."""
    token = get_token()
    if token:
        text = text.replace(token.strip(), "***")
    return _SECRET.sub("***", " ".join(text.split()))[:300]


def _oid(path: Path, like: str | None) -> str:
    """What the Hub calls a file's content: a sha256 (64 digits) if that is what stands there, git's id of the blob else."""
    size = path.stat().st_size
    digest = hashlib.sha256() if like is None or len(like) == 64 else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remember(name: str, revision: str, commit: str) -> None:
    """Note which commit a branch or tag is, as the client does, so that the cache can answer for it without a network."""
    if revision == commit:
        return
    path = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / revision
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, encoding="utf-8")
