"""Push models to and pull them from the Hugging Face Hub, or another hub with the same API (``HF_ENDPOINT``).

Retries and the cache are those of huggingface_hub.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import AbstractContextManager
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
    try_to_load_from_cache,
)
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash
from yaml import YAMLError

from mmzoo.backbones.hub_errors import explain_hub_errors, http_status, hub_error, is_transient, moved_meanwhile, without_secrets
from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import MAX_JSON, FileFacts, check_file, read_manifest, verify_checkpoint
from mmzoo.checkpoints.screening import CARD, MANIFEST
from mmzoo.common.files import hash_file
from mmzoo.errors import CheckpointError, HubError
from mmzoo.sharing.private_names import CommitApi
from mmzoo.sharing.repository import MAIN, Files, Pushed, SharedModel, staging

LIBRARY = "mmzoo"
TIMEOUT = 60.0  # seconds without a byte from the hub
RETRY_WAITS = (1.0, 2.0, 4.0, None)  # seconds after each try of a commit; the library does not retry commits


class HubRepository:
    """Represent one model repository on a hub, ``owner/name``."""

    def __init__(self, name: str) -> None:
        self.name, self.api, self.url = name, _client(), f"{constants.ENDPOINT}/{name}"

    def _info(self, revision: str | None) -> ModelInfo:
        """Return what the hub knows of a revision."""
        with self._explained("", revision or MAIN):
            info = self.api.model_info(self.name, revision=revision, timeout=max(TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT))
        if info.sha is None:
            raise HubError(f"{self.url}: the hub does not say which commit '{revision or MAIN}' is; check HF_ENDPOINT")
        return info

    def _list(self, revision: str) -> tuple[str, dict[str, str]]:
        """Return the commit of a revision, and the hash of each of its files: sha256 in LFS, else the id of git's blob."""
        commit = str(self._info(revision).sha)
        with self._explained("", revision):
            entries = list(self.api.list_repo_tree(self.name, recursive=True, revision=commit))
        hashes = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in entries if isinstance(file, RepoFile)}
        screening.check_names(hashes, self.url)
        return commit, hashes

    def _explained(self, item: str, revision: str | None = None, *, after: str = "") -> AbstractContextManager[None]:
        """Return a context that raises a `HubError` for what the library raises."""
        return explain_hub_errors(self.url, self.name, item=item, revision=revision, after=after)

    # Pulling

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """Download a revision as `Remote.fetch`: only the files that the manifest lists, after their sizes were compared.

        If the hub cannot be reached, the cached commit of the revision is used.
        """
        try:
            commit = self._resolve(revision)
        except HubError as error:
            folder = self._cached(revision) if to is None and is_transient(error.__cause__) else None
            if folder is None:
                raise
            if not constants.is_offline_mode():
                print(f"warning: {error}; using commit {folder.name[:12]} of the cache", file=sys.stderr)
            verify_checkpoint(folder)
            return folder
        if to is None:
            return self._download(commit, revision, None)
        with staging(to) as staged:
            self._download(commit, revision, staged)
            shutil.rmtree(staged / ".cache", ignore_errors=True)  # written by huggingface_hub
        return to.expanduser()

    def _resolve(self, revision: str | None) -> str:
        """Return the commit of a revision, after checking the names of its files."""
        info = self._info(revision)
        names = [file.rfilename for file in info.siblings or []]
        screening.check_names(names, self.url)
        if MANIFEST not in names:
            raise HubError(
                f"{self.url}: has no {MANIFEST}, so it is not a model of mmzoo; `mmzoo push` shares one, and a backbone "
                f"is named in a recipe, such as hf-causal:{self.name}"
            )
        return str(info.sha)

    def _cached(self, revision: str | None) -> Path | None:
        """Return the cached folder of a revision; None unless each file of its manifest is there."""
        path = try_to_load_from_cache(self.name, MANIFEST, revision=revision or MAIN)
        if not isinstance(path, str):
            return None
        folder = Path(path).parent
        return folder if all((folder / name).is_file() for name in read_manifest(folder).files) else None

    def _download(self, commit: str, revision: str | None, to: Path | None) -> Path:
        """Download a commit to the folder ``to``, or to the cache; return the verified folder."""
        with self._explained(MANIFEST, commit):
            size = self.api.hf_hub_download(self.name, MANIFEST, revision=commit, dry_run=True).file_size or 0
            if size > MAX_JSON:
                raise CheckpointError(f"{self.url}: {MANIFEST} is {size} bytes; {MAX_JSON} are allowed")
            # By its name, so that the library records in the cache which commit the revision is, for use without a network.
            named = commit if to is not None else revision or MAIN
            folder = Path(self.api.hf_hub_download(self.name, MANIFEST, revision=named, local_dir=to)).parent
        if to is None and folder.name != commit:
            raise HubError(f"{self.url}: someone pushed to '{named}' while it was pulled; pull again")
        files = read_manifest(folder).files
        names = self._check_sizes(files, commit, to)
        with self._explained("its files", commit):
            self.api.snapshot_download(self.name, revision=commit, allow_patterns=names, local_dir=to)
        for name, facts in files.items():
            self._repair(folder, name, facts, commit, to)
        verify_checkpoint(folder)
        return folder

    def _check_sizes(self, files: dict[str, FileFacts], commit: str, to: Path | None) -> list[str]:
        """Return the names of the files to download, before any is, if all have the sizes that the manifest lists."""
        options: Any = {"revision": commit, "allow_patterns": [*files, CARD], "local_dir": to, "dry_run": True}
        with self._explained("its files", commit):
            downloads = {file.filename: file for file in self.api.snapshot_download(self.name, **options)}
        for name, facts in files.items():
            if (file := downloads.get(name)) is None:
                raise CheckpointError(f"{self.url}: {name} is missing; the checkpoint is incomplete")
            # The size of a cached file is that of the copy here, which may be damaged.
            if file.file_size != facts.size and not file.is_cached:
                size = f"{file.file_size} bytes, {facts.size} were saved"
                raise CheckpointError(f"{self.url}: {name} is {size}; it was not downloaded")
        if CARD in downloads and (downloads[CARD].file_size or 0) > screening.MAX_CARD:
            raise CheckpointError(f"{self.url}: {CARD} is larger than {screening.MAX_CARD >> 20} MiB, too large for a card")
        return list(downloads)

    def _repair(self, folder: Path, name: str, facts: FileFacts, commit: str, to: Path | None) -> None:
        """Check a file, and download it once more if it is damaged."""
        try:
            check_file(folder, name, facts)
        except CheckpointError:
            with self._explained(name, commit):
                self.api.hf_hub_download(self.name, name, revision=commit, local_dir=to, force_download=True)
            try:
                check_file(folder, name, facts)
            except CheckpointError as error:
                raise CheckpointError(f"{self.url}: {name}: {str(error).partition(': ')[2]}") from None

    # Pushing

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """Commit files as `Remote.send`. The commit names its parent, so that a concurrent push is never overwritten."""
        branch = revision or MAIN
        is_new = not self._exists(private, create=not create_pr)
        if is_new:  # before it is created, since a refused push would leave it empty
            self._check_card(files)
            with self._explained("creating it"):
                self.api.create_repo(self.name, private=private or None, exist_ok=True)
        if branch != MAIN and not branch.startswith("refs/") and not create_pr:
            self._create_branch(branch)
        head, hashes = self._list(branch)
        if not is_new and CARD in files and not _same(files[CARD], hashes.get(CARD)):
            self._check_card(files)
        changed = [name for name, path in files.items() if not _same(path, hashes.get(name))]
        removed = [name for name in hashes if name not in files and screening.known(name)]
        commit, url = head, f"{self.url}/commit/{head}"
        if changed or removed:
            commit, url = self._commit({name: files[name] for name in changed}, removed, branch, head, create_pr, message)
            if not create_pr:
                self._confirm(files, commit)
        if tag is not None:
            with self._explained(f"tag '{tag}'", branch):
                self.api.create_tag(self.name, tag=tag, revision=commit)
        return Pushed(self.name, branch, commit, url, changed, [name for name in files if name not in changed])

    def _exists(self, private: bool, *, create: bool) -> bool:
        """Return whether the repository exists; a `HubError` if it may not be created, or is public and should not be."""
        try:
            info = self._info(None)
        except HubError as error:
            missing = isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError)
            if create and missing:
                return False
            raise
        if private and info.private is False:
            raise HubError(f"{self.url}: exists and is public; make it private in its settings, or push to another name")
        return True

    def _create_branch(self, branch: str) -> None:
        """Create a branch unless it exists."""
        with self._explained(f"branch '{branch}'"):
            references = self.api.list_repo_refs(self.name)
            if any(reference.name == branch for reference in references.tags):
                raise HubError(f"{self.url}: '{branch}' is a tag; push to a branch")
            if not any(reference.name == branch for reference in references.branches):
                self.api.create_branch(self.name, branch=branch, exist_ok=True)

    def _check_card(self, files: Files) -> None:
        """Ask the hub to check the card. If the hub cannot, the push goes on: the hub refuses a wrong card at the commit."""
        if CARD not in files:
            return
        try:
            ModelCard(files[CARD].read_text(encoding="utf-8")).validate()
        except (ValueError, YAMLError) as error:
            reason = f"the hub does not accept the card: {without_secrets(str(error))}"
            raise HubError(f"{self.url}: {reason}. Correct the metadata of {CARD}; nothing was sent") from None
        except Exception as error:  # HTTP clients raise many types
            print(f"warning: {hub_error(error, self.url, self.name, item='could not check the card')}", file=sys.stderr)

    def _commit(
        self, upload: Files, removed: list[str], branch: str, head: str, create_pr: bool, message: str
    ) -> tuple[str, str]:
        """Return the id and the URL of a new commit, or of the pull request with it.

        The library retries the uploads but not the commit, which would be made twice if only its answer was lost. So it is tried
        again here only if the branch is still at ``head``.
        """
        after = f"; the repository is still at commit {head[:12]}"
        additions = [CommitOperationAdd(name, path) for name, path in upload.items()]
        with self._explained("the upload", branch, after=after):
            self.api.preupload_lfs_files(self.name, additions, revision=branch, create_pr=create_pr)
        operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in removed)]
        for wait in RETRY_WAITS:
            try:
                with self._explained("the commit", branch, after=after):
                    info = self.api.create_commit(
                        self.name, operations, commit_message=message, revision=branch, parent_commit=head, create_pr=create_pr
                    )
                    return info.oid, info.pr_url or info.commit_url
            except HubError as error:
                # After a lost answer, the retry of a commit that landed conflicts with it.
                if not is_transient(error.__cause__) and wait == RETRY_WAITS[0]:
                    raise
                if not create_pr and (commit := self._landed(upload, removed, branch, head)):
                    return commit, f"{self.url}/commit/{commit}"
                if wait is None or not is_transient(error.__cause__) or (create_pr and http_status(error.__cause__) is None):
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _landed(self, upload: Files, removed: list[str], branch: str, head: str) -> str | None:
        """Return the commit of a push whose answer was lost; None if the branch is still at ``head`` or the hub does not answer.

        A `HubError` is raised if someone else pushed to the branch meanwhile.
        """
        try:
            commit, hashes = self._list(branch)
        except HubError:
            return None
        if commit == head:
            return None
        if all(_same(path, hashes.get(name)) for name, path in upload.items()) and not set(removed) & set(hashes):
            return commit
        raise HubError(f"{self.url}: {moved_meanwhile(branch)}")

    def _confirm(self, files: Files, commit: str) -> None:
        """Check that a commit holds each file, since the hub leaves out what the repository's .gitignore names."""
        _, hashes = self._list(commit)
        if lost := [name for name, path in files.items() if not _same(path, hashes.get(name))]:
            raise HubError(f"{self.url}: commit {commit} does not hold {lost[0]} as it was sent; does its .gitignore name it?")


def search(query: str | None, tags: list[str], limit: int) -> list[SharedModel]:
    """Return the models of the Hub with ``library_name: mmzoo``."""
    with explain_hub_errors(constants.ENDPOINT, "", item="the search"):
        models = _client().list_models(filter=[LIBRARY, *tags], search=query, limit=limit)
        return [SharedModel(model.id, model.sha or "", list(model.tags or [])) for model in models]


def _client() -> HfApi:
    """Return the library's client. Its requests get a timeout, unless its user has chosen one: by default uploads have none."""
    session = get_session()
    if session.timeout.read is None:
        session.timeout = TIMEOUT
    return CommitApi(library_name=LIBRARY, library_version=version("mmzoo"))


def _same(path: Path, remote_hash: str | None) -> bool:
    """Return whether a file has the content with a hash of the hub: a sha256 (64 digits), or the id of git's blob."""
    if remote_hash is None:
        return False
    return remote_hash == (hash_file(path) if len(remote_hash) == 64 else git_hash(path.read_bytes()))
