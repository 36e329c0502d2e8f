"""Parse untrusted JSON and YAML into plain data of limited size, depth and number of values.

A few hundred bytes of YAML aliases can expand to gigabytes when they are walked, and deep nesting overflows recursive code. Both
are refused here, so that code which reads the data does not have to guard against them.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 2_000_000


def parse(text: str, *, as_yaml: bool = False, numbers: bool = False) -> Any:
    """Parse JSON (or YAML) into data that is safe to walk.

    Args:
        as_yaml: read YAML instead of JSON.
        numbers: accept NaN and infinity in JSON, which Python writes and the standard forbids.

    Raises:
        ValueError: it is not valid, nests deeper than `MAX_DEPTH`, holds more than `MAX_NODES` values once aliases are expanded,
            repeats a key, or holds text that is not valid Unicode.
    """
    try:
        if as_yaml:
            data = yaml.load(text, _UniqueKeys)
        else:
            data = json.loads(text, parse_constant=float if numbers else _refuse_constant, object_pairs_hook=_unique_keys)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"nests deeper than {MAX_DEPTH} levels") from None
    except (TypeError, AttributeError, OverflowError, KeyError, IndexError) as error:  # PyYAML on odd tags, dates and keys
        raise ValueError(f"{type(error).__name__}: {error}") from None
    check_data(data)
    return data


class _UniqueKeys(yaml.SafeLoader):
    """Read YAML as `yaml.safe_load`; refuse a key that is repeated, as `_unique_keys` does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ValueError(f"names the key {key.value!r} twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_data(data: Any) -> None:
    """Raise `ValueError` as `parse` does. The data is walked as by a reader: a shared value counts each time it is reached."""
    remaining, stack = MAX_NODES, [(data, 1)]
    while stack:
        value, depth = stack.pop()
        remaining -= 1
        if remaining < 0:
            raise ValueError(f"holds more than {MAX_NODES} values")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("holds text that is not valid Unicode (a lone surrogate)") from None
        elif isinstance(value, dict | list | tuple | set):
            if depth > MAX_DEPTH:
                raise ValueError(f"nests deeper than {MAX_DEPTH} levels")
            if len(stack) + len(value) > MAX_NODES:
                raise ValueError(f"holds more than {MAX_NODES} values")
            stack.extend((item, depth + 1) for item in (chain(*value.items()) if isinstance(value, dict) else value))


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and infinity, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; refuse a repeated key, whose first value would be lost."""
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"names the key {key!r} twice")
        data[key] = value
    return data
