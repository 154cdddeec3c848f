"""The one reader of csv files: whole columns at once, and single rows only to say what is wrong with them."""

import csv
import gzip
import heapq
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from classquery.data.annotations.schema import AnnotationError, ProblemCollector, parsing, quote


_MAX_CELL = csv.field_size_limit()
_TEXT = pa.dictionary(pa.int32(), pa.string())


class OddRow(NamedTuple):
    """A row with more or fewer cells than there are columns."""

    number: int
    cells: list[str]


class Names(NamedTuple):
    """A column of text: most values repeat."""

    codes: np.ndarray
    """int32 (n,), index of `values`; -1 where the cell is empty."""
    values: list[str]


class CsvColumns(NamedTuple):
    """The n rows of a file that have as many cells as there are columns; lines without any text are left out."""

    row: np.ndarray
    """int32 (n,), numbers of the rows in the file, counted from 1."""
    texts: dict[str, Names]
    """By the name of the column, without spaces around."""
    numbers: dict[str, np.ndarray]
    """float64 (n,), NaN where the cell is empty or no number."""
    written: dict[str, pa.ChunkedArray]
    """The cells of these columns as they are, for messages."""
    odd_rows: list[OddRow]

    def cells(self, index: int) -> dict[str, Any]:
        """Return the cells of one row that are not empty, as written."""
        values = {name: column[index].as_py() for name, column in self.written.items()}
        return {name: value for name, value in values.items() if value not in (None, "")}

    def list_cells(self, index: int) -> list[str]:
        """Return all cells of one row as text."""
        cells = (column[index].as_py() for column in self.written.values())
        return ["" if cell is None else f"{cell:.15g}" if isinstance(cell, float) else cell for cell in cells]

    def note_wrong(
        self,
        right: np.ndarray,
        problems: ProblemCollector,
        why: Callable[[int], str],
        why_odd: Callable[[list[str]], str],
        place_of: Callable[[str], str] = lambda row: row,
    ) -> None:
        """Note all rows that are not right, and the odd ones, in their order.

        Args:
            right: Boolean (n,).
            problems: Takes note.
            why: Says what is wrong with a row, by its index.
            why_odd: The same, by the cells of an odd row.
            place_of: Completes "row 3" to a place in the files.
        """
        wrong = np.flatnonzero(~right).tolist()
        rows = heapq.merge(
            ((row.number, why_odd, row.cells) for row in self.odd_rows),
            ((self.row[index], why, index) for index in wrong),
            key=itemgetter(0),
        )
        places = ((place_of(f"row {number}"), explain(row)) for number, explain, row in rows)
        problems.note(len(self.odd_rows) + len(wrong), places)


def read_bytes(path: Path) -> bytes:
    """Read a text file, which may be compressed (`.gz`), and check that it is text.

    Raises:
        AnnotationError: If it is none in UTF-8.
    """
    with parsing(path, "it cannot be read as text"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = content.removeprefix(b"\xef\xbb\xbf")
        if not content.isascii():
            content.decode("utf-8")
    nul = content.find(b"\0")
    if nul >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise AnnotationError(f"{path} is no text: it has a NUL byte in line {line}, save it as text in UTF-8")
    return content


def header_of(content: bytes) -> list[str]:
    """Return the names of the columns in the first line."""
    line = content[: content.find(b"\n") + 1 or None].decode("utf-8")
    with parsing("the header", "close every quote"):
        return [name.strip() for name in next(csv.reader(io.StringIO(line)), [])]


def parse_csv(
    path: Path,
    content: bytes,
    columns: Sequence[str],
    *,
    texts: Collection[str],
    numbers: Collection[str],
    has_header: bool = False,
) -> CsvColumns:
    """Parse a csv.

    Args:
        path: Its name for messages.
        content: What `read_bytes` returned.
        columns: Names of all columns, of which each may be there once.
        texts, numbers: Those that are read; the others are skipped.
        has_header: Whether the first line is skipped.

    Raises:
        AnnotationError: If it is no csv: a quote is not closed, or a line is longer than a megabyte.
    """
    header, _, rows = content.partition(b"\n") if has_header else (b"", b"", content)
    if not rows.strip():
        content = header + b"\n" * has_header + b"," * (len(columns) - 1) + b"\n"  # Arrow refuses a file without rows.
    wanted = [name for name in columns if name in (*texts, *numbers)]
    repeated = [name for name in wanted if columns.count(name) > 1]
    if repeated:
        raise AnnotationError(f"{path} has two columns {quote(repeated[0])}: keep one")
    types = dict.fromkeys(texts, _TEXT) | dict.fromkeys(numbers, pa.float64())
    try:
        table, odd_rows = _parse(path, content, columns, {name: types[name] for name in wanted}, has_header)
    except AnnotationError:
        # Text where a number should be: which row, is seen in the cells as they are.
        table, odd_rows = _parse(path, content, columns, dict.fromkeys(wanted, pa.string()), has_header)
    row = np.delete(
        np.arange(1 + has_header, len(table) + len(odd_rows) + 1 + has_header, dtype=np.int32),
        [odd.number - 1 - has_header for odd in odd_rows],
    )
    is_empty = np.logical_and.reduce([column.is_null().to_numpy() for column in table.columns])
    if is_empty.any():
        table, row = table.filter(pa.array(~is_empty)), row[~is_empty]
    names = {name: _names(table[name]) for name in wanted if name in texts}
    for column in names.values():
        _refuse_line_breaks(path, row, column)
    return CsvColumns(
        row,
        names,
        {name: _numbers(table[name]) for name in wanted if name in numbers},
        {name: table[name] for name in wanted},
        [odd for odd in odd_rows if any(cell.strip() for cell in odd.cells)],
    )


def _parse(
    path: Path, content: bytes, columns: Sequence[str], types: Mapping[str, pa.DataType], has_header: bool
) -> tuple[pa.Table, list[OddRow]]:
    odd_rows, unclosed = [], []

    def note(row: pa_csv.InvalidRow) -> str:
        if row.text.count('"') % 2:
            unclosed.append(row)
        else:
            # What is raised here would get lost: cells of any length.
            cells = next(csv.reader([row.text]), []) if len(row.text) < _MAX_CELL else row.text.split(",")
            odd_rows.append(OddRow(row.number, cells))
        return "skip"

    with parsing(path, "it is no table of values separated by commas"):
        table = pa_csv.read_csv(
            pa.BufferReader(content),
            pa_csv.ReadOptions(use_threads=False, column_names=list(columns), skip_rows=int(has_header)),
            pa_csv.ParseOptions(
                newlines_in_values=b'"' in content, ignore_empty_lines=False, invalid_row_handler=note
            ),
            pa_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True
            ),
        )
    if unclosed:
        raise AnnotationError(f"{path}, row {unclosed[0].number}: a quote is not closed: {quote(unclosed[0].text)}")
    return table, odd_rows


def _names(column: pa.ChunkedArray) -> Names:
    """Return a column of text without spaces around, and without values that differ by them alone."""
    if column.type != _TEXT:
        column = column.dictionary_encode()
    if not len(column):
        return Names(np.zeros(0, np.int32), [])
    encoded = column.unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    stripped = [value.strip() for value in encoded.dictionary.to_pylist()]
    values = list(dict.fromkeys(value for value in stripped if value))
    numbers = {value: number for number, value in enumerate(values)} | {"": -1}
    renumbered = np.array([*(numbers[value] for value in stripped), -1], np.int32)
    return Names(renumbered[encoded.indices.fill_null(len(stripped)).to_numpy(zero_copy_only=False)], values)


def _refuse_line_breaks(path: Path, row: np.ndarray, column: Names) -> None:
    """Nothing has a name of several lines: a quote that is not closed takes in the rows behind it."""
    broken = next((code for code, value in enumerate(column.values) if "\n" in value), None)
    if broken is not None:
        first = row[np.argmax(column.codes == broken)]
        raise AnnotationError(
            f"{path}, row {first}: a quote is not closed, or a name has a line break: {quote(column.values[broken])}"
        )


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    if column.type != pa.float64():
        return pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(np.float64)
    return column.to_numpy() if not column.null_count else pc.fill_null(column, np.nan).to_numpy()
