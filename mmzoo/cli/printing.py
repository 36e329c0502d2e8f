"""How commands print."""

from __future__ import annotations

import json
import sys
from typing import Any

from mmzoo.plugins import host


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def warn_of_failures() -> None:
    for failure in host().failures:
        print(f"warning: plugin '{failure.plugin}' is not in use: {failure.error.splitlines()[0]}", file=sys.stderr)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def quiet() -> None:
    """Let the libraries underneath speak only of errors; what a user needs to know comes from here."""
    import logging
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|accelerate|transformers|timm|open_clip")
    warnings.filterwarnings("ignore", category=FutureWarning)
