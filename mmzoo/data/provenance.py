"""Record which data set was used, so that others can open it again: its name and options, but never its path."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmzoo.data.dataset import Dataset
from mmzoo.errors import DataError
from mmzoo.recipes import licence
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def describe(dataset: str | PartConfig | Dataset) -> dict[str, Any]:
    """Return the record of a data set: ``dataset``, ``local``, ``dataset_options`` and ``license``."""
    if isinstance(dataset, Dataset):
        return {"dataset": type(dataset).__name__, "local": True, "dataset_options": {}, "license": licence.UNKNOWN}
    part = dataset if isinstance(dataset, PartConfig) else PartConfig.of(dataset, "dataset")
    registered = split_use(part.use)[0] in _registered()
    place = str(part.options.get("variant") or (split_use(part.use)[1] if registered else part.use) or "")
    options = as_json(part.options)
    paths = {key for key, value in options.items() if isinstance(value, str) and os.sep in value and _exists(value)}
    local = bool(paths) or (bool(place) and _exists(place))
    if local:
        name = Path(place or part.use).expanduser().resolve().name or place
        license = part.license or licence.UNKNOWN
    else:
        name = part.use
        license = licence.of_part("dataset", part) if registered else part.license or licence.UNKNOWN
    options = {key: value for key, value in options.items() if not (local and (key == "variant" or key in paths))}
    return {"dataset": name, "local": local, "dataset_options": options, "license": license}


def reopen(record: Mapping[str, Any]) -> PartConfig:
    """Return the configuration of the data set that a record names: a registered name or an id on the Hub.

    A path in a record is never opened, because the record may come from someone else.

    Raises:
        DataError: the data set is a file, folder or object of the model's author, or is not registered here.
    """
    use, options = str(record["dataset"]), _recorded(record)
    name, variant, _ = split_use(use)
    place = str(options.get("variant") or variant or "" if name in _registered() else use)
    other = name not in _registered() and ":" in use  # no id on the Hub has a colon
    if record.get("local") or other or (place and (_ID.fullmatch(split_use(place)[0]) is None or _exists(place))):
        raise DataError(
            f"data set '{use}' is a file, folder or object of the model's author; if you have a copy, name it: --dataset PATH"
        )
    if name not in _registered() and "/" not in use:
        raise DataError(f"data set '{use}' is not registered; install the plugin that has it, or name a copy: --dataset PATH")
    return PartConfig.of({**options, "use": use}, f"the record of '{use}'")


def substitute(dataset: str | PartConfig | Dataset, record: Mapping[str, Any]) -> PartConfig | Dataset:
    """Return the configuration of another data set, with the options of a record where it sets none itself."""
    if isinstance(dataset, Dataset):
        return dataset
    part = dataset if isinstance(dataset, PartConfig) else PartConfig.of(dataset, "dataset")
    recorded = {key: value for key, value in _recorded(record).items() if key != "variant"}
    return part.with_options(**{**recorded, **part.options})


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON data; values that JSON cannot represent become their repr."""
    return dict(json.loads(json.dumps(options, default=repr)))


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded options of the data set, without the keys that would choose another one."""
    return {key: value for key, value in (record.get("dataset_options") or {}).items() if key not in PartConfig.model_fields}


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _registered() -> set[str]:
    return {entry.name for entry in plugin_manager().registry.entries("dataset")}
