"""Load any data set of images, audio or video of the `datasets` library, by its id on the Hub or as a folder, whole or streamed.

Source: https://huggingface.co/docs/datasets. Its own code is never run: the library reads plain formats only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, SourceError, one_line
from mmzoo_datasets.columns import ColumnOptions, RowReader, TableExamples, in_order, read_table

EMPTY = "{}: split '{}' is empty; training and evaluation need at least one example"


class HubDataset(Dataset):
    """Provide examples from a table of the library; class numbers become class names, pictures and clips stay undecoded."""

    class Options(ColumnOptions):
        variant: str = Field(min_length=1, description="id such as `org/name`, or a local folder")
        revision: str | None = Field(None, description="branch, tag or commit; null for the newest")
        subset: str | None = Field(None, description="configuration, of a data set that has several")
        streaming: bool = Field(False, description="read it while it is used, instead of downloading it first")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        folder = Path(options.variant).expanduser()
        self._folder = folder if folder.is_dir() else None
        if self._folder and options.revision:
            raise DataError(f"{self._folder} is a folder; it has no revision '{options.revision}'")
        self._path = str(self._folder or options.variant)

    def splits(self) -> list[str]:
        """Return the names that the data set declares.

        Raises:
            SourceError: it cannot be reached, or is not a data set.
        """
        options = self.options
        try:
            return in_order(datasets.get_dataset_split_names(self._path, options.subset, revision=options.revision))
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
            table = datasets.load_dataset(
                self._path, options.subset, split=split, revision=options.revision, streaming=options.streaming
            )
            names = table.column_names or list(next(iter(table), {}))
        except Exception as error:
            if "corresponds to no data" in str(error):
                raise DataError(EMPTY.format(where, split)) from None
            raise self._failed(error) from None
        if not names or (not options.streaming and not len(table)):
            raise DataError(EMPTY.format(where, split))
        table, reader = read_table(
            table, options, split, where, self._folder, names, self.wanted, self.exact, partial=self.partial
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


class Stream(Iterable[Example]):
    """Iterate over the examples of a streamed table, from its beginning with each ``iter``."""

    def __init__(self, table: Any, reader: RowReader) -> None:
        self.table = table
        self.reader = reader

    def __iter__(self) -> Iterator[Example]:
        return _Rows(self)


class _Rows(Iterator[Example]):
    """Read the examples of a stream. It can go on after one that cannot be used, which a generator could not."""

    def __init__(self, stream: Stream) -> None:
        self.reader, self.index = stream.reader, 0
        # Not `iter(table)`, which in a data worker reads only the worker's own shards: the trainer distributes examples.
        self.rows = stream.table.iter(1)

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
