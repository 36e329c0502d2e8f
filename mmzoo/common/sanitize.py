"""Sanitise untrusted text before printing, so that control characters cannot affect the terminal."""

from __future__ import annotations

import re
from typing import Any

MAX_SHOWN = 100
MAX_LINE = 300

# Control characters; also characters that reverse the direction of text or count as line breaks, and lone surrogates, which no
# output can encode.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def describe_error(error: BaseException) -> str:
    """Return the type and message of any exception, sanitised, even if its ``__str__`` raises."""
    try:
        message = str(error).strip()
    except BaseException as broken:
        message = f"(its __str__ raises {type(broken).__name__})"
    return sanitize(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def short_repr(value: Any) -> str:
    """Return at most `MAX_SHOWN` characters of a value's repr, even if its ``__repr__`` raises."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def sanitize(text: str) -> str:
    """Return the text with every control character replaced by ``?``; tabs and newlines stay."""
    return _CONTROL.sub("?", text)


def whole(text: str) -> str:
    """Return the text with ``?`` for each half of a surrogate pair, which nothing can encode; a shell or a cut emoji has one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def one_line(error: BaseException | str, limit: int = MAX_LINE) -> str:
    """Return an error's message as one line of at most ``limit`` characters; its type's name if it has no message."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
