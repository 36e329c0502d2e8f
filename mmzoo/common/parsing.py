"""Reading what a stranger wrote: JSON and YAML as plain data of bounded size, depth and number of nodes.

A few hundred bytes of YAML aliases stand for gigabytes once they are walked, and deep nesting ends recursive code; both are
refused here, so that whatever reads the data afterwards need not think of it.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 2_000_000


def parse(text: str, *, as_yaml: bool = False, numbers: bool = False) -> Any:
    """JSON (or YAML) text as data that is safe to walk; ``numbers``: NaN and infinity may stand in JSON, as Python writes them.

    Raises:
        ValueError: it is not valid, nests deeper than `MAX_DEPTH`, holds more than `MAX_NODES` values once aliases are followed,
            names a key twice, or holds text that is no Unicode.
    """
    try:
        if as_yaml:
            data = yaml.safe_load(text)
        else:
            data = json.loads(text, parse_constant=float if numbers else _no_number, object_pairs_hook=_once)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"nests deeper than {MAX_DEPTH} levels") from None
    except (TypeError, AttributeError, OverflowError, KeyError, IndexError) as error:  # PyYAML on odd tags, dates and keys
        raise ValueError(f"{type(error).__name__}: {error}") from None
    check_data(data)
    return data


def check_data(data: Any) -> None:
    """Raises ValueError as `parse` does. It walks as a reader would, so a shared value counts each time it is met."""
    left, waiting = MAX_NODES, [(data, 1)]
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"holds more than {MAX_NODES} values")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("holds text that is no Unicode (a lone surrogate)") from None
        elif isinstance(value, dict | list | tuple | set):
            if depth > MAX_DEPTH:
                raise ValueError(f"nests deeper than {MAX_DEPTH} levels")
            if isinstance(value, dict):
                waiting.extend((key, depth + 1) for key in value)
                value = value.values()
            if len(waiting) + len(value) > MAX_NODES:
                raise ValueError(f"holds more than {MAX_NODES} values")
            waiting.extend((item, depth + 1) for item in value)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"names the key {twice!r} twice")
    return found
