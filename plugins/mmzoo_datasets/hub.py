"""Load any data set of images, audio or video of the `datasets` library, by its id on the Hub or as a folder, whole or streamed.

Source: https://huggingface.co/docs/datasets. Its own code is never run: the library reads plain formats only, among them shards
of Parquet, JSON lines and WebDataset tars. A folder's files may be chosen by a pattern: ``datasets:shards/train-*.tar``.

In a tar the files of a sample are columns named by their suffix: ``jpg``, ``txt``, ``cls``, and ``json``, whose keys are columns
such as ``json.caption``.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, SourceError, one_line
from mmzoo_datasets.columns import ColumnOptions, RowReader, TableExamples, in_order, read_table

KEY = "__key__"  # the column of a tar that names its samples
# What the columns of a tar hold, the first that there is.
TAR_TARGETS = ("json.target", "json.answer", "json.answers", "txt", "json.caption", "json.captions", "json.label", "cls")
TAR_TEXTS = ("json.question", "json.prompt")
EMPTY = "{}: split '{}' is empty; training and evaluation need at least one example"


class HubDataset(Dataset):
    """Provide examples from a table of the library; class numbers become class names, pictures and clips stay undecoded."""

    class Options(ColumnOptions):
        variant: str = Field(min_length=1, description="id such as `org/name`, a local folder, or a pattern of local files")
        revision: str | None = Field(None, description="branch, tag or commit; null for the newest")
        subset: str | None = Field(None, description="configuration, of a data set that has several")
        streaming: bool = Field(False, description="read it while it is used, instead of downloading it first")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        folder = Path(options.variant).expanduser()
        self._files: str | None = None  # a pattern of files in the folder
        if glob.has_magic(options.variant):
            fixed = next(i for i, part in enumerate(folder.parts) if glob.has_magic(part))
            folder, self._files = Path(*folder.parts[:fixed]), "/".join(folder.parts[fixed:])
        self._folder = folder if folder.is_dir() else None
        if self._folder and options.revision:
            raise DataError(f"{self._folder} is a folder; it has no revision '{options.revision}'")
        self._path = str(self._folder or options.variant)
        self._source: dict[str, Any] = {"revision": options.revision, "data_files": self._files}

    def splits(self) -> list[str]:
        """Return the names that the data set declares.

        Raises:
            SourceError: it cannot be reached, or is not a data set.
        """
        options = self.options
        try:
            return in_order(datasets.get_dataset_split_names(self._path, options.subset, **self._source))
        except Exception as error:
            raise self._failed(error) from None

    def load(self, split: str) -> Sequence[Example] | Iterable[Example]:
        """Return the examples of a split: a sequence, or with ``streaming`` an iterable.

        Raises:
            SourceError: it cannot be reached or read.
            DataError: it lacks a column, or is empty.
        """
        options = self.options
        where = f"data set '{options.variant}'"
        try:
            table = datasets.load_dataset(self._path, options.subset, split=split, streaming=options.streaming, **self._source)
            names = table.column_names or list(next(iter(table), {}))
        except Exception as error:
            if "corresponds to no data" in str(error):
                raise DataError(EMPTY.format(where, split)) from None
            raise self._failed(error) from None
        if not names or (not options.streaming and not len(table)):
            raise DataError(EMPTY.format(where, split))
        kinds = table.features or {}
        nested = [f"{name}.{key}" for name in names if isinstance(kinds.get(name), Mapping) for key in kinds[name]]
        if KEY in names:
            options = _of_tar(options, [*names, *nested])
        table, reader = read_table(
            table, options, split, where, self._folder, names, self.wanted, self.exact, (), self.partial, nested
        )
        if options.streaming:
            return Stream(table.take(options.limit) if options.limit else table, reader)
        return TableExamples(table.select(range(min(len(table), options.limit or len(table)))), reader)

    def _failed(self, error: Exception) -> SourceError:
        return SourceError(f"data set '{self.options.variant}' cannot be read: {_explained(error)}")


def _explained(error: Exception) -> str:
    """Return what the library says, in one line, and what to do about it."""
    text = one_line(error.__cause__ or error, 500)
    advice = ""
    if "onfig name is missing" in text or "BuilderConfig" in text:
        advice = "\nSet subset to one of its configurations."
    elif "scripts are no longer supported" in text:
        advice = "\nA data set's own code is never run; convert it to Parquet."
    elif "column names don't match" in text or "truncated converting" in text:
        advice = (
            "\nIts files, or early and late rows, have different columns or types. Give all of them the same; or put the rows "
            "into one file of JSON lines and name its path without `datasets:`, which reads rows that differ."
        )
    return text + advice


def _of_tar(options: ColumnOptions, names: Sequence[str]) -> ColumnOptions:
    """Return options with the usual columns of a tar where none is chosen."""
    usual = {"target_column": TAR_TARGETS, "text_column": TAR_TEXTS, "id_column": (KEY,)}
    found = {key: next((name for name in columns if name in names), None) for key, columns in usual.items()}
    return options.model_copy(update={key: name for key, name in found.items() if name and getattr(options, key) is None})


class Stream(Iterable[Example]):
    """Iterate over the examples of a streamed table, from its beginning with each ``iter``, or once from a state."""

    def __init__(self, table: Any, reader: RowReader) -> None:
        self.table = table
        self.reader = reader
        self._rows: _Rows | None = None
        self._state: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Example]:
        self._rows, self._state = _Rows(self, self._state), None
        return self._rows

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last example of the last iterator, as plain data."""
        assert self._rows is not None
        return {"index": self._rows.index, "table": self._rows.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator go on from a state."""
        self._state = state

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for a data worker: no iterator."""
        return {**self.__dict__, "_rows": None}


class _Rows(Iterator[Example]):
    """Read the examples of a stream. It can go on after one that cannot be used, which a generator could not."""

    def __init__(self, stream: Stream, state: dict[str, Any] | None) -> None:
        self.reader, self.table, self.index = stream.reader, stream.table, state["index"] if state else 0
        self.table.load_state_dict(state["table"] if state else {})  # which it would keep for the next pass too
        # Not `iter(table)`, which in a data worker reads only the worker's own shards: the trainer distributes examples.
        self.rows = self.table.iter(1)

    def __next__(self) -> Example:
        """Return the next example.

        Raises:
            SourceError: the table cannot be read, or reading it failed on the way.
            DataError: it has no rows, or the row cannot be used.
        """
        reader = self.reader
        try:
            row = {name: values[0] for name, values in next(self.rows).items()}
            for column in reader.columns.inputs.values():
                row = _fetched(row, column)
        except StopIteration:
            if self.index:
                raise
            self.index = 1  # so that the next call ends
            raise DataError(EMPTY.format(reader.where, reader.prefix)) from None
        except Exception as error:
            raise SourceError(f"{reader.where}: reading example {self.index + 1} failed: {_explained(error)}") from None
        self.index += 1
        return reader(row, self.index - 1)


def _fetched(row: dict[str, Any], column: str) -> dict[str, Any]:
    """Return the row with the bytes of its picture or clip where the table has only a path in an archive or a URL."""
    value = row[column]
    if isinstance(value, dict) and not value.get("bytes") and "://" in (value.get("path") or ""):
        try:
            with fsspec.open(value["path"]) as file:
                row = {**row, column: {"bytes": file.read(), "path": value["path"]}}
        except FileNotFoundError:
            pass  # reported for this example when its input is opened
    return row
