"""Read your own data: a JSON-lines, JSON, CSV or Parquet file, or a folder that holds one for each split.

    train.jsonl     {"image": "images/1.png", "question": "What is it?", "answer": ["a cat", "cat"]}
    test.jsonl      {"image": "images/2.png", "question": "What is it?", "answer": "a dog"}

Paths of pictures start from the folder of the file. In a folder each file is the split that its name says; a folder whose only
file is called data or metadata, and a single file, have the splits of the column ``split``, or else one (``train``, or what the
file's name says).

Texts and answers are taken as they are written: "007", "NA" and "2020-01-31" stay what they are. (The readers of the `datasets`
library guess a type for each column, which changes such answers, so that it reads only Parquet here.) A number of JSON or Parquet
has a text as `mmzoo_datasets.columns` says. Text files are held in
memory, Parquet is mapped into it; for millions of examples choose Parquet.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mmzoo.api import DataError, Dataset, is_missing
from mmzoo_datasets.columns import (
    INPUTS,
    KINDS,
    ROLES,
    SPLIT,
    SPLITS,
    USUAL,
    ColumnOptions,
    Columns,
    RowReader,
    TableExamples,
    check_text,
    in_order,
    read_table,
)

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
WHOLE = ("data", "metadata")
EMPTY = "{}: the file is empty; training and evaluation need at least one example"

_BATCH = 10_000  # rows that are converted at a time
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that were not decoded
_COLUMNS = Columns("image", "text", "target", "id", "audio", "video")


class Files(Dataset):
    """Provide examples from your own files; see the module for their layout."""

    class Options(ColumnOptions):
        variant: str = Field(min_length=1, description="path of the folder or file")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.path = Path(options.variant).expanduser()
        self._whole: dict[tuple[str, ...], dict[str, TableExamples]] = {}  # by `wanted`

    def splits(self) -> list[str]:
        """Return the names of the files, or the values of the column ``split``.

        Raises:
            DataError: there is no such folder or file, or it holds no data.
        """
        files = self._files()
        return in_order(self._parts(files) if isinstance(files, Path) else files)

    def load(self, split: str) -> TableExamples:
        """Return the examples of a split, each made when it is asked for.

        Raises:
            DataError: a file is empty or malformed (the message has its name, and the line where it is known), or lacks a
                column; or there is no such split.
        """
        files = self._files()
        splits = self._parts(files) if isinstance(files, Path) else files
        if split not in splits:
            raise DataError(f"{self.path}: there is no split '{split}'; there are: {', '.join(in_order(splits))}")
        source = splits[split]
        rows = self._read(source, split) if isinstance(source, Path) else source
        return TableExamples(rows.table.select(range(min(len(rows), self.options.limit or len(rows)))), rows.reader)

    def _files(self) -> Path | dict[str, Path]:
        """Return the one file that holds everything, or the file of each split."""
        if not self.path.exists():
            raise DataError(f"{self.path}: there is no such file or folder")
        if self.path.is_file():
            if self.path.suffix not in SUFFIXES:
                raise DataError(f"{self.path}: a data file ends in {', '.join(SUFFIXES)}")
            return self.path
        paths = sorted(path for path in self.path.iterdir() if _is_data(path))
        if len(paths) == 1 and paths[0].stem in WHOLE:
            return paths[0]
        by_split: dict[str, Path] = {}
        for path in paths:
            if path.stem in by_split:
                raise DataError(f"{self.path}: both {by_split[path.stem].name} and {path.name} are split '{path.stem}'")
            if path.stem not in WHOLE:
                by_split[path.stem] = path
        if not by_split:
            raise DataError(
                f"{self.path}: there must be one file a split, such as train.jsonl, train.csv or train.parquet, or one "
                f"data.jsonl. (Pictures in folders, or another layout of the `datasets` library: datasets:{self.path})"
            )
        return by_split

    def _parts(self, path: Path) -> dict[str, TableExamples]:
        """Return the splits of a file that may have a column ``split``."""
        if self.wanted not in self._whole:
            name = path.stem if path.stem in SPLITS else "train"
            rows = self._read(path, name)
            if SPLIT not in rows.table.column_names:
                self._whole[self.wanted] = {name: rows}
            else:
                values = np.asarray([rows.reader.text(SPLIT, {SPLIT: value}) for value in rows.table[SPLIT]])
                if (missing := np.flatnonzero(values == "")).size:
                    raise DataError(f"{path}: example {missing[0] + 1} has nothing in column '{SPLIT}'")
                self._whole[self.wanted] = {
                    str(value): TableExamples(
                        rows.table.select(np.flatnonzero(values == value)), replace(rows.reader, prefix=str(value))
                    )
                    for value in np.unique(values)
                }
        return self._whole[self.wanted]

    def _read(self, path: Path, split: str) -> TableExamples:
        try:
            if path.suffix == ".parquet":
                table = _parquet(path)
                names, where = table.column_names, str(path)
                rows = TableExamples(
                    *read_table(
                        table, self.options, split, where, path.parent, names, self.wanted, self.exact, [SPLIT], self.partial
                    )
                )
            else:
                rows = self._read_text(path, split)
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if not len(rows):
            raise DataError(EMPTY.format(path))
        return rows

    def _read_text(self, path: Path, split: str) -> TableExamples:
        place = _place(path)
        keys: dict[str, None] = {}
        filled: dict[frozenset[str], int] = {}  # which usual columns have a value together, with the first line
        for line, record in _records(path):  # all of them first, because a key may appear late
            keys |= dict.fromkeys(record)
            filled.setdefault(frozenset(name for name in record.keys() & USUAL if not is_missing(record[name])), line)
        names = list(keys)
        if not filled:
            return TableExamples(datasets.Dataset.from_list([]), RowReader(_COLUMNS, split, str(path)))
        found = Columns.find(self.options, names, str(path), wanted=self.wanted, exact=self.exact, partial=self.partial)
        _check_alternatives(found, self.options, filled, f"{path}, {place}")
        reader = RowReader(found, split, str(path))
        columns = replace(_COLUMNS, targets={task: f"target/{task}" for task in found.targets})
        schema = _schema(columns)
        batches, records = [], _records(path)
        while batch := [_row(record, reader, line, place) for line, record in islice(records, _BATCH)]:
            batches.append(pa.RecordBatch.from_pylist(batch, schema))
        table = pa.Table.from_batches(batches)
        if SPLIT not in names:
            table = table.drop_columns(SPLIT)
        return TableExamples(datasets.Dataset(table), replace(reader, columns=columns, root=path.parent))


def _check_alternatives(columns: Columns, options: ColumnOptions, filled: Mapping[frozenset[str], int], where: str) -> None:
    """Check that no column which is not read stands for one that is, as where two files with other names were put together.

    Args:
        columns: those that are read.
        filled: the columns of usual names that have a value together in a row, with the first line of such a row.
        where: the file, and what its lines are called.

    Raises:
        DataError: there is one; the message names a line and the option to set.
    """
    for key, usual in ROLES.items():
        chosen = getattr(columns, key)
        for other in set(usual) - set(columns.used) if chosen and getattr(options, f"{key}_column") is None else ():
            line = next((line for names, line in filled.items() if other in names), None)
            if line is not None and not any({chosen, other} <= names for names in filled):
                raise DataError(
                    f"{where} {line} has {other!r} where others have {chosen!r}, and one column is read: give them the same "
                    f"name, or set {key}_column to {chosen!r} to leave out the others"
                )


def _schema(columns: Columns) -> pa.Schema:
    """Return the schema of a table that holds the rows of a text file in these columns."""
    lists = {*columns.inputs.values(), columns.target, *columns.targets.values()}
    return pa.schema({name: pa.list_(pa.string()) if name in lists else pa.string() for name in (*columns.used, SPLIT)})


def _is_data(path: Path) -> bool:
    """Return whether a file of a folder holds examples; other .json files are often about the data."""
    return path.suffix in SUFFIXES and (path.suffix != ".json" or path.stem in (*SPLITS, *WHOLE)) and path.is_file()


def _row(record: Mapping[str, Any], reader: RowReader, line: int, place: str) -> dict[str, Any]:
    example = reader(record, line - 1, place)
    inputs = {modality: example.of(modality) for modality in INPUTS}
    targets = example.targets if isinstance(example.targets, Mapping) else {}
    with reader.errors_at(line - 1, place):
        for modality, sources in inputs.items():
            column = reader.columns.inputs.get(modality, "")
            if not all(isinstance(source, str) for source in sources):
                raise TypeError(f"column '{column}': a {KINDS[modality]} in a text file must be the path of a file")
            for source in sources:
                check_text(column, source)
        return {
            **inputs,
            "text": example.text,
            "target": () if targets else example.targets,
            **{f"target/{task}": texts for task, texts in targets.items()},
            "id": reader.text(reader.columns.id, record),
            SPLIT: reader.text(SPLIT, record),
        }


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _csv(path) if path.suffix == ".csv" else _json(path)


def _decoded(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the lines of a file that was opened with ``errors="surrogateescape"``; raise a `DataError` if one is not UTF-8."""
    for line, text in enumerate(file, 1):
        if not text.isascii() and (wrong := _NOT_UTF8.search(text)):
            byte = ord(wrong[0]) - 0xDC00
            raise DataError(
                f"{path}, line {line}, character {wrong.start() + 1}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
            )
        yield text


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, or of one JSON list, each with its line (or its place in the list)."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, item in _json_list(path, file) if path.suffix == ".json" else _json_lines(path, file):
            if not isinstance(item, dict):
                raise DataError(f'{path}, {_place(path)} {line}: {str(item)[:40]!r} is not an object such as {{"image": ...}}')
            yield line, item


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(_decoded(path, file), 1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {line}: not JSON: {error}") from None


def _json_list(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    text = "".join(_decoded(path, file))
    try:
        data = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):  # files of JSON lines are often named .json
            yield from _json_lines(path, StringIO(text))
            return
        raise DataError(f"{path}: not JSON: {error}") from None
    yield from enumerate(data if isinstance(data, list) else [data], 1)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a file with a header, each with the line that it ends on."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(_decoded(path, file), strict=True)
        try:
            header = next(rows, [])
            if repeated := {name for name in header if header.count(name) > 1}:
                raise DataError(f"{path}: two columns are called {min(repeated)!r}")
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(f"{path}, line {rows.line_num}: {len(row)} cells where the header has {len(header)}")
                if row:
                    yield rows.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}") from None


def _parquet(path: Path) -> datasets.Dataset:
    try:
        if not pq.read_metadata(path).num_rows:
            raise DataError(EMPTY.format(path))
        # The library reads a path as a pattern.
        return datasets.load_dataset("parquet", data_files=glob.escape(str(path.absolute())), split="train")
    except DataError:
        raise
    except Exception as error:  # Arrow's and the library's own, in many layers
        raise DataError(f"{path} is not a Parquet file that can be read: {error.__cause__ or error}") from None


def _place(path: Path) -> str:
    return "item" if path.suffix == ".json" else "line"
