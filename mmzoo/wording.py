"""Text of strangers in what is shown: whatever it holds, a terminal shows it and does nothing else."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def told(error: BaseException) -> str:
    """What a stranger's exception says, behind its type; also of one that cannot say it."""
    try:
        text = str(error)
    except BaseException as broken:
        text = f"(its __str__ raises {type(broken).__name__})"
    return harmless(f"{type(error).__name__}: {text}")


def harmless(text: str) -> str:
    """A stranger's text, without what a terminal obeys."""
    return _CONTROL.sub("?", text)
