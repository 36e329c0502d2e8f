"""Text of strangers in what is shown: whatever it holds, a terminal shows it and does nothing else."""

from __future__ import annotations

import re
from typing import Any

MAX_SHOWN = 100
MAX_LINE = 300

# Also what turns the direction of text around, what some take for the end of a line, and halves of characters, which no
# output encodes.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def describe_error(error: BaseException) -> str:
    """What a stranger's exception says, behind its type; also of one that cannot say it."""
    try:
        text = str(error)
    except BaseException as broken:
        text = f"(its __str__ raises {type(broken).__name__})"
    return sanitize(f"{type(error).__name__}: {text.strip()}" if text.strip() else type(error).__name__)


def short_repr(value: Any) -> str:
    """A value in a message, however long it is or odd its repr."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def sanitize(text: str) -> str:
    """A stranger's text, without what a terminal obeys."""
    return _CONTROL.sub("?", text)


def one_line(error: BaseException | str, limit: int = MAX_LINE) -> str:
    """Return an error's message as one line of at most ``limit`` characters; its type's name if it has no message."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
