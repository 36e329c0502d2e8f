"""Turn rows of a table into examples; `files` and `datasets` share this.

A cell without a value (`mmzoo.api.is_missing`: null, NaN, NaT, a blank text) is missing, whatever its column holds. A number that
is whole has no point, since pandas makes floats of the integers of a column that lacks one: 1, 1.0 and Decimal("1.00")
are the target "1". In a list with another number, such as [0.5, 1.0], each stays as it is. A number of 32 bits has the digits it
needs. A text is taken as it is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mmzoo.api import DataError, Example, Options, is_missing

IMAGE = ("image", "file_name", "image_path", "path")
AUDIO = ("audio", "audio_path", "wav")
VIDEO = ("video", "video_path", "clip")
INPUTS = {"image": IMAGE, "audio": AUDIO, "video": VIDEO}
KINDS = {"image": "picture", "audio": "clip", "video": "video"}
TEXT = ("text", "question", "prompt")
TARGET = ("target", "answer", "answers", "caption", "captions", "label")
ROLES = {**INPUTS, "text": TEXT, "target": TARGET}
USUAL = frozenset(chain.from_iterable(ROLES.values()))
SPLIT = "split"
SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def _column(what: str, names: Sequence[str], none: str = "") -> Any:
    return Field(None, description=f"column of {what}; null for the first that exists of {', '.join(names)}{none}")


class ColumnOptions(Options):
    """Say which columns hold what, and how many rows are read."""

    image_column: str | None = _column(
        "the pictures: paths, bytes or arrays", IMAGE, "; an empty text for no such column, for an encoder without an input"
    )
    audio_column: str | None = _column("the clips, for an encoder of audio: paths, bytes or arrays", AUDIO)
    video_column: str | None = _column("the videos, for an encoder of video: paths", VIDEO)
    text_column: str | None = _column("the questions or prompts", TEXT, "; an empty text for no such column")
    target_column: str | None = _column(
        "the answers, captions or labels, one or a list", TARGET, "; an empty text for no such column"
    )
    target_columns: dict[str, str] | None = Field(
        None, description="of a model with several tasks, the column of each one's targets; null for those called as the tasks"
    )
    id_column: str | None = Field(None, description="column that names examples in messages; null for their number")
    limit: int | None = Field(None, ge=1, description="only this many examples of each split, from the first")


@dataclass(frozen=True)
class Columns:
    """Name the columns in use, by what they hold; None where there is none. ``targets`` are by task, instead of ``target``."""

    image: str | None
    text: str | None
    target: str | None
    id: str | None
    audio: str | None = None
    video: str | None = None
    targets: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """Return the columns of inputs by modality."""
        return {modality: column for modality in INPUTS if (column := getattr(self, modality))}

    @property
    def used(self) -> list[str]:
        """List every column in use."""
        return list(filter(None, (*self.inputs.values(), self.text, self.target, self.id, *self.targets.values())))

    @classmethod
    def find(
        cls,
        options: ColumnOptions,
        names: Sequence[str],
        where: str,
        known: Mapping[str, Sequence[str]] | None = None,
        wanted: Sequence[str] = (),
        exact: bool = False,
        partial: bool = False,
    ) -> Columns:
        """Return the columns that the options name, or else the usual ones among ``names``.

        ``known`` maps a modality to the columns that hold such inputs by their type; if there is only one, it needs no usual
        name. ``wanted`` are the tasks that need targets of their own (`Dataset.wanted`); a column of their name serves them,
        and with ``exact`` no other. With ``partial`` those of several without a column are left out.

        Raises:
            DataError: a column does not exist; the message names those that do, and the option to set.
        """
        its = f"its columns are {', '.join(map(repr, names))}"
        columns = f"{where}: {its}"
        chosen = {key: getattr(options, f"{key}_column") for key in (*INPUTS, "text", "target", "id")}
        own, several = dict(options.target_columns or {}) if wanted else {}, len(wanted) > 1
        if unread := [task for task in own if task not in wanted]:
            raise DataError(f"target_columns.{unread[0]}: no task reads it; the tasks read {', '.join(wanted)}")
        given = {f"{key}_column": name for key, name in chosen.items()} | {f"target_columns.{t}": own[t] for t in own}
        for option, name in given.items():
            if name and name not in names:
                raise DataError(f"{columns}; there is no {name!r}: set {option} to one of them")
        if len(wanted) > 1 or chosen["target"] is None:
            own = {task: task for task in wanted if task in names} | own
        if partial and len(wanted) > 1:
            if not own:
                raise DataError(
                    f"{where}: no column serves one of the tasks {', '.join(wanted)}: {its}; write TASK=NAME (datasets={{TASK: "
                    "...}) with the task that it is for, or set target_columns.TASK to one of them"
                )
            wanted = [task for task in wanted if task in own]
        # A column has one meaning: a target that is named 'text' must not be the prompt too.
        taken = {name for key, name in chosen.items() if key != "id"} | set(own.values())
        free = [name for name in names if name not in taken]

        def first(key: str, usual: Sequence[str]) -> str | None:
            if chosen[key] is not None:
                return chosen[key] or None
            return next((name for name in usual if name in free), None)

        def inputs(modality: str, usual: Sequence[str]) -> str | None:
            named = first(modality, usual)
            typed = [name for name in free if name in (known or {}).get(modality, ())]
            return typed[0] if named is None and chosen[modality] is None and len(typed) == 1 else named

        found = {modality: inputs(modality, usual) for modality, usual in INPUTS.items()}
        text = first("text", TEXT)
        if not any(found.values()) and chosen["image"] is None and not (several and text):
            raise DataError(
                f"{columns}; none is called {_either(IMAGE)}: set image_column to the one of the pictures (to an empty text for "
                f"text alone), or audio_column, if none is called {_either(AUDIO)}, to the one of the clips"
            )
        if (exact or several) and (without := [task for task in wanted if task not in own]):
            raise DataError(
                f"{where}: no column serves the task {without[0]!r}: {its}; set target_columns.{without[0]} to one of them"
            )
        target = None if own else first("target", TARGET)
        if target is None and not own and chosen["target"] is None:
            raise DataError(
                f"{columns}; none is called {_either(TARGET)}: set target_column to the one of the answers or captions "
                "(to an empty text if there is none)"
            )
        targets = {task: own.get(task, target) for task in wanted}
        named = chosen["id"] or None
        return cls(found["image"], text, None if wanted else target, named, found["audio"], found["video"], targets)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


@dataclass(frozen=True)
class RowReader:
    """Make an example of a row.

    Args:
        columns: which columns hold what.
        prefix: what a numbered example's id begins with, the split.
        where: the source, for messages.
        root: the folder that relative paths start from.
        labels: for columns of class numbers, their names.
        narrow: for columns of floats of fewer than 64 bits, their type.
    """

    columns: Columns
    prefix: str
    where: str
    root: Path | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    narrow: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Mapping[str, Any], index: int, place: str = "row") -> Example:
        """Return the example of row ``index`` (from 0), which messages call ``place`` and its number (from 1).

        Raises:
            DataError: a value is not a picture, text or answer by its type.
        """
        columns = self.columns
        with self.errors_at(index, place):
            return Example(
                id=self.text(columns.id, row) or f"{self.prefix}/{index}",
                inputs={kind: self._source(name, cell(row, name), KINDS[kind]) for kind, name in columns.inputs.items()},
                text=self.text(columns.text, row),
                targets={task: self._texts(name, row) for task, name in columns.targets.items()}
                or self._texts(columns.target, row),
            )

    @contextmanager
    def errors_at(self, index: int, place: str = "row") -> Iterator[None]:
        """Raise a `DataError` with the source and the place of a row instead of errors about its values."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.where}, {place} {index + 1}: {error}") from None

    def text(self, column: str | None, row: Mapping[str, Any]) -> str:
        """Return the text of a cell; empty if it is missing, or if there is no column."""
        value = cell(row, column) if column else None
        return "" if is_missing(value) else self._text(column, value)

    def _texts(self, column: str | None, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts of a cell that may hold a list."""
        value = cell(row, column) if column else None
        values = value if isinstance(value, list | tuple) else [value]
        present = [each for each in values if not is_missing(each)]
        fractions = any(isinstance(each, float | Decimal) and each % 1 for each in present)
        if fractions and len(present) < len(values):
            raise ValueError(f"column '{column}' holds a list of numbers that lacks one; leave the row out, or all its numbers")
        return tuple(text for each in present if (text := self._text(column, each, whole=not fractions)))

    def _text(self, column: str | None, value: Any, *, whole: bool = True) -> str:
        """Return the text of a value; with ``whole``, that of a whole number has no point."""
        if isinstance(value, str):
            return check_text(column, value)
        if names := self.labels.get(column or ""):
            return names[int(value)] if 0 <= value < len(names) else ""  # -1 stands for a hidden label
        if isinstance(value, bool | np.bool_):
            return "true" if value else "false"
        if isinstance(value, dict):
            keys = ", ".join(map(repr, list(value)[:5]))
            raise TypeError(
                f"column '{column}' holds {_kind(value)}, not a text; its keys are {keys}: write one of them as a text, "
                "or a list of texts"
            )
        if isinstance(value, list | tuple | bytes | np.ndarray):
            raise TypeError(f"column '{column}' holds {_kind(value)}, not a text")
        if whole and isinstance(value, float | Decimal) and abs(value) < 2**53 and not value % 1:
            return str(int(value))
        if isinstance(value, Decimal):
            return format(value.normalize(), "f")
        return str(self.narrow[column or ""](value) if column in self.narrow and isinstance(value, float) else value)

    def _source(self, column: str, value: Any, what: str) -> Any:
        """Return an input, or several, as `mmzoo.Example` holds them; None for an empty cell."""
        if is_missing(value):
            return None
        if isinstance(value, str):
            if self.root is None or "://" in value:
                return value
            return str(self.root / Path(value).expanduser())
        if isinstance(value, dict) and "array" in value:
            return {**value, "array": np.asarray(value["array"])}
        if isinstance(value, dict) and not value.get("bytes"):
            path = value.get("path")
            if not value.keys() & {"bytes", "path"} or not (is_missing(path) or isinstance(path, str)):
                raise TypeError(f"column '{column}' holds {_kind(value)}, not a {what}")
            return self._source(column, path, what)
        if isinstance(value, list):
            if not any(isinstance(item, list | Number) for item in value):
                sources = [self._source(column, item, what) for item in value if not is_missing(item)]
                return sources[0] if len(sources) == 1 else sources
            if not isinstance(value[0], list):
                raise TypeError(f"column '{column}' holds {_kind(value)} of numbers, not a {what}")
            return np.asarray(value)
        if isinstance(value, Number):
            raise TypeError(f"column '{column}' holds {_kind(value)}, not a {what}")
        return value


def cell(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column; of ``json.caption`` that of the key ``caption`` in the mapping of the column ``json``."""
    if column in row:
        return row[column]
    head, _, key = column.partition(".")
    inner = row.get(head)
    return inner.get(key) if key and isinstance(inner, Mapping) else None


def check_text(column: str | None, text: str) -> str:
    """Return a text; raise a `ValueError` if it holds what no text should."""
    if text.isascii() and "\0" not in text:
        return text
    if "\0" in text:
        raise ValueError(f"column '{column}' holds a NUL character; remove it, or leave the row out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(
            f"column '{column}' holds {half}, half of a surrogate pair, which is no character: an emoji was cut in two; write "
            "the text anew, or leave the row out"
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {list: "a list", tuple: "a list", dict: "a mapping", bytes: "bytes", bool: "a truth value", str: "a text"}
    return names.get(type(value), "a number" if isinstance(value, Number) else f"a {type(value).__name__}")


class TableExamples(Sequence[Example]):
    """Read the rows of an Arrow table (a `datasets.Dataset`) as examples, each when it is asked for.

    So neither memory nor the time to start grows with their number. Can be pickled.
    """

    def __init__(self, table: Any, reader: RowReader) -> None:
        self.table = table
        self.reader = reader

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        with self.reader.errors_at(place):
            try:
                row = self.table[place]
            except UnicodeError as error:
                raise ValueError(f"column '{self._unreadable(place)}': {error}") from None
        return self.reader(row, place)

    def _unreadable(self, place: int) -> str:
        """Return the first column whose text in a row is not UTF-8."""
        for name in self.table.column_names:
            try:
                self.table.select_columns([name])[place]
            except UnicodeError:
                return str(name)
        return "?"


def check_targets(wanted: Sequence[str], known: Sequence[str], where: str, *, partial: bool = False) -> list[str]:
    """Return the wanted targets that the data set has; raise a `DataError` if it lacks one, or with ``partial`` all of them."""
    unknown = [name for name in wanted if name not in known]
    if unknown and not (partial and len(unknown) < len(wanted)):
        raise DataError(
            f"{where} has no targets for the task {unknown[0]!r}: name the task {_either(known)}"
            + (f", or write TASK=NAME (datasets={{TASK: ...}}) with one of the tasks {', '.join(wanted)}" if partial else "")
        )
    return [name for name in wanted if name in known]


def in_order(splits: Iterable[str]) -> list[str]:
    """Sort the usual splits first, in their usual order."""
    return sorted(splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def features(table: Any) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, Any]]:
    """Return the columns of inputs of a `datasets` table by modality, the class names of its columns of class numbers, and the
    type of its columns of narrow floats."""
    import datasets

    kinds = {"image": datasets.Image, "audio": datasets.Audio, "video": datasets.Video}
    inputs: dict[str, list[str]] = {modality: [] for modality in kinds}
    labels: dict[str, list[str]] = {}
    narrow: dict[str, Any] = {}
    for name, kind in (table.features or {}).items():
        inner = getattr(kind, "feature", kind)
        if modality := next((modality for modality, known in kinds.items() if isinstance(inner, known)), None):
            inputs[modality].append(name)
        elif isinstance(inner, datasets.ClassLabel):
            labels[name] = list(inner.names)
        elif getattr(inner, "dtype", None) in ("float16", "float32"):
            narrow[name] = getattr(np, inner.dtype)
    return inputs, labels, narrow


def read_table(
    table: Any,
    options: ColumnOptions,
    split: str,
    where: str,
    root: Path | None,
    names: list[str],
    wanted: Sequence[str] = (),
    exact: bool = False,
    keep: Collection[str] = (),
    partial: bool = False,
    nested: Sequence[str] = (),
) -> tuple[Any, RowReader]:
    """Return a `datasets` table, or a stream of one, and the `RowReader` of its rows; ``names`` are its columns, and
    ``nested`` the keys of those that hold mappings (see `cell`).

    Inputs are left undecoded, and only the columns in use (or in ``keep``) are kept. ``wanted`` are `Dataset.wanted`.

    Raises:
        DataError: it lacks a column.
    """
    inputs, labels, narrow = features(table)
    columns = Columns.find(options, [*names, *nested], where, inputs, wanted, exact, partial)
    for column in columns.inputs.values():
        kind = table.features[column] if column in chain.from_iterable(inputs.values()) else None
        if kind is not None:
            inner = getattr(kind, "feature", kind)
            undecoded = type(inner)(decode=False)
            table = table.cast_column(column, undecoded if inner is kind else type(kind)(undecoded))
    heads = (name.partition(".")[0] if name in nested else name for name in columns.used)
    used = dict.fromkeys((*heads, *(name for name in keep if name in names)))
    return table.select_columns(list(used)), RowReader(columns, split, where, root, labels, narrow)
