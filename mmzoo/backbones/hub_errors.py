"""Translate what huggingface_hub raises into errors that say what is wrong and how to fix it.

The HTTP client of huggingface_hub differs between its versions (httpx, httpx2), so the client's errors are recognised by their
class names.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_session, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmzoo.common.sanitize import one_line, sanitize
from mmzoo.errors import HubError, MmzooError

_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CLASSES = frozenset({"TransportError", "ConnectionError", "TimeoutError", "Timeout", "LocalEntryNotFoundError"})
_NO_CONNECTION = frozenset({"ConnectError", "ConnectTimeout", "ProxyError"})
_TIMEOUT_CLASSES = frozenset({"TimeoutException", "Timeout"})
# No space, a quota, no permission.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
_SECRET = re.compile(r"hf_[A-Za-z0-9_]{6,}|(?i:bearer)\s+\S+")
_REASONS = {
    403: "this token may not do that (403); use one with write permission (`hf auth login`), or --create-pr",
    404: "is not there (404)",
    405: "takes no changes (405), as a read-only mirror does; set HF_ENDPOINT to the hub itself",
    409: "conflicts with another operation on the repository (409); try again in a moment",
    413: "is too large for the hub (413)",
    429: "too many requests (429); wait a few minutes and try again",
}


def check_connection(repository: str, name: str, revision: str | None) -> None:
    """Raise the HTTP client's error if there is no connection to the Hub, and no copy of a file in the library's cache.

    To be called before a download: the library would wait and try again for most of a minute, and log each try. Faults of a Hub
    that answers are left to it.
    """
    if constants.is_offline_mode() or isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # HTTP clients raise many types
        if _class_names(error) & _NO_CONNECTION:
            raise


def root_cause(error: BaseException) -> Exception:
    """Return the error that the library wrapped: in a RuntimeError for an upload, in a FileNotFoundError for a download."""
    while isinstance(error, RuntimeError | FileNotFoundError) and error.__cause__ is not None and http_status(error) is None:
        error = error.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the Hub's answer, or None if it did not answer."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return getattr(response, "status_code", None)


def is_transient(error: BaseException | None) -> bool:
    """Return whether the request may succeed later: no connection, offline mode, too many requests, or a fault of the Hub."""
    if error is None or _is_disk_error(error):
        return False
    if (status := http_status(error)) is not None:
        return status in _TRANSIENT_STATUSES
    return isinstance(error, OfflineModeIsEnabled) or bool(_class_names(error) & _TRANSIENT_CLASSES)


def is_final(error: BaseException) -> bool:
    """Return whether no file can be fetched: the repository is missing, gated or has no such revision, or the disk is full."""
    return isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError) or _is_disk_error(error)


def moved_meanwhile(branch: str) -> str:
    """Return the reason of a push that was refused since the branch is no longer at the commit that the push started from."""
    return f"someone else pushed to '{branch}' meanwhile (412); look at their commit, then push again"


def hub_error(
    error: BaseException,
    subject: str,
    repository: str,
    *,
    item: str = "",
    revision: str | None = None,
    kind: type[MmzooError] = HubError,
    alternative: str = "",
    after: str = "",
) -> MmzooError:
    """Return the error of this package for an error of huggingface_hub. No message holds a token.

    Args:
        subject, after: what the message begins and ends with.
        repository, revision: what was asked for: ``owner/name``, and a branch, tag or commit.
        item: the file or step that failed; errors about the whole repository leave it out.
        kind: the class of the error.
        alternative: what else can be done where the Hub cannot be reached, such as "give a local folder".
    """
    error = root_cause(error)
    if reason := _repository_reason(error, repository, revision):
        return kind(f"{subject}: {reason}{after}")
    reason = _request_reason(error, revision, f", or {alternative}" if alternative else "")
    return kind(f"{subject}: {f'{item}: ' if item else ''}{reason}{after}")


@contextmanager
def explain_hub_errors(subject: str, repository: str, **options: Any) -> Iterator[None]:
    """Raise the `hub_error` for any error of the library in the block, which is its cause. Errors of this package pass."""
    try:
        yield
    except MmzooError:
        raise
    except Exception as error:  # HTTP clients raise many types
        raise hub_error(error, subject, repository, **options) from root_cause(error)


def without_secrets(text: str) -> str:
    """Return the text of a hub or a library as one short line that holds no token and no control characters."""
    if token := get_token():
        text = text.replace(token.strip(), "***")
    return sanitize(one_line(_SECRET.sub("***", text)))


def _repository_reason(error: Exception, repository: str, revision: str | None) -> str:
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, HFValidationError):
        return "is not a valid repository id: write owner/name, of letters, digits, '-', '_' and '.'"
    if isinstance(error, GatedRepoError):
        return f"is gated: accept its terms at {page}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        login = "log in with an account that may see it" if get_token() else "log in with `hf auth login` if it is private"
        return f"there is no such repository at {constants.ENDPOINT}, or it is private; check the name, or {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision '{revision}'; {page}/commits/main lists them"
    if http_status(error) == 401:
        return "the hub does not accept the token (401); log in again with `hf auth login`, or set HF_TOKEN"
    return ""


def _request_reason(error: Exception, revision: str | None, alternative: str) -> str:
    status = http_status(error)
    if isinstance(error, OfflineModeIsEnabled) or (constants.is_offline_mode() and status is None):
        return "is not in the cache, and HF_HUB_OFFLINE is set; unset it, or download it before going offline"
    if isinstance(error, EntryNotFoundError) and not is_transient(error):
        return f"does not exist at revision '{revision or constants.DEFAULT_REVISION}'"
    if status == 412:
        return moved_meanwhile(revision or constants.DEFAULT_REVISION)
    if status is not None:
        if status >= 500:
            return f"the hub has a fault ({status}); try again later{alternative}"
        return _REASONS.get(status) or f"the hub refused ({status}): {without_secrets(str(error))}"
    if _is_disk_error(error):
        return f"cannot be written: {without_secrets(str(error))}; free some space, or set HF_HOME to another disk"
    if _class_names(error) & _TIMEOUT_CLASSES:
        return f"{constants.ENDPOINT} does not answer in time; check the connection, try again later{alternative}"
    text = without_secrets(f"{type(error).__name__}: {error}")
    return f"the connection to {constants.ENDPOINT} failed ({text}); check it and try again{alternative}"


def _is_disk_error(error: BaseException) -> bool:
    """Return whether a file on this machine could not be written."""
    return isinstance(error, OSError) and http_status(error) is None and error.errno in _DISK_ERRORS


def _class_names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
