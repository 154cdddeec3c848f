"""Rows of shards from a folder or any store that fsspec reaches, one request each, with limits in time and number."""

import asyncio
import concurrent.futures
import io
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import httpx

from classquery.data.annotations.schema import AnnotationError, abbreviate, parsing
from classquery.data.shards.layout import (
    INDEX_FEATURES,
    INDEX_FILE,
    LAYOUT_VERSION,
    WINDOW_FEATURES,
    index_file,
    row_range,
)
from classquery.data.video.opening import VideoReadError


ResultT = TypeVar("ResultT")

# What file systems raise when they do not reach their store, or it breaks off.
_STORE_ERRORS = (OSError, TimeoutError, asyncio.TimeoutError, aiohttp.ClientError, httpx.HTTPError, EOFError)
# What a Parquet file raises that is none, or another one.
_CONTENT_ERRORS = (pa.ArrowException, KeyError, ValueError, IndexError)
# What is wrong will be wrong the next time, too.
_FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# Some hundred kilobytes each.
_MAX_FOOTERS = 16
_FOOTER_TAIL = 8
# A shard that is gone costs one wait, not one for each of its clips.
_SECONDS_WITHOUT_ASKING = 60.0
_MAGIC = b"PAR1"


class ShardStore:
    """A folder of shards, wherever it is.

    It may be pickled and forked: connections are made when something is fetched.

    Args:
        url: Folder or URL (`hf://datasets/USER/NAME`, `https://...`, `s3://...`), see fsspec.
        storage_options: Of the file system.
        timeout_seconds: Longest wait for one answer of the store.
        max_attempts: How often something is asked for.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        storage_options: dict[str, Any] | None = None,
        timeout_seconds: float = 30.0,
        max_attempts: int = 3,
    ):
        self.url = os.fspath(url).rstrip("/")
        self.storage_options = storage_options or {}
        self.timeout_seconds = timeout_seconds
        self.max_attempts = max_attempts
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._failures: dict[str, tuple[float, Exception]] = {}
        """By shards whose end could not be read: when, and why."""
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        names = ("url", "storage_options", "timeout_seconds", "max_attempts")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("url"), **state)

    def read_index(self) -> dict[str, Any]:
        """Read what all shards have in common.

        Raises:
            AnnotationError: If it is no such file.
            FileNotFoundError: If there is none.
            OSError: If the store does not answer.
        """
        content = self._fetch(INDEX_FILE)
        with parsing(f"{self.url}/{INDEX_FILE}", "it is no index of shards: write them again"):
            index = json.loads(content)
            version, splits = index["version"], index["splits"]
            labels = {int(label): str(name) for label, name in index["labels"].items()}
            if version != LAYOUT_VERSION:
                raise AnnotationError(
                    f"{self.url} holds shards of version {version}, this is {LAYOUT_VERSION}: write them again, or "
                    "install the version of classquery that wrote them"
                )
            return index | {"splits": dict(splits), "labels": labels}

    def read_rows(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read which rows a split has: a table with `INDEX_FEATURES`, or some columns of it.

        Raises:
            AnnotationError, FileNotFoundError, OSError: As `read_index`.
        """
        path = index_file(split)
        content = self._fetch(path)
        with parsing(f"{self.url}/{path}", "it is no index of shards, or damaged: write them again"):
            try:
                file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
                if not file.schema_arrow.equals(INDEX_FEATURES.arrow_schema):
                    raise ValueError(f"its columns are {abbreviate(', '.join(file.schema_arrow.names))}")
                return file.read(columns=columns)
            except OSError as error:  # pyarrow's, for what is damaged.
                raise ValueError(error) from error

    def read_row(self, shard: dict[str, Any], row: int) -> dict[str, Any]:
        """Read one row of a shard.

        Args:
            shard: Its entry in the index.
            row: Which.

        Returns:
            A row with `WINDOW_FEATURES`.

        Raises:
            VideoReadError: If that takes too long, or it is not there, damaged or something else; names shard and row.
        """
        path = shard["file"]
        try:
            return self._read_row(path, shard["num_bytes"], row)
        except _FINAL_ERRORS as error:
            raise self._unreadable(path, row, "it is missing", "copy the shards again") from error
        except _STORE_ERRORS as error:
            cause = f"{abbreviate(str(error))} ({type(error).__name__})"
            remedy = "check the connection, or copy the shard again"
            raise self._unreadable(path, row, cause, remedy) from error
        except _CONTENT_ERRORS as error:
            cause = f"it is damaged or another file ({abbreviate(str(error))})"
            raise self._unreadable(path, row, cause, "copy the shard again") from error

    def _unreadable(self, path: str, row: int, cause: str, remedy: str) -> VideoReadError:
        return VideoReadError(f"cannot read row {row} of {self.url}/{path}: {cause}; {remedy}")

    def _read_row(self, path: str, num_bytes: int, row: int) -> dict[str, Any]:
        footer = self._footer(path, num_bytes)
        start, end = row_range(footer, row)
        file = _Part(self._fetch(path, start, end), start, num_bytes)
        try:
            shard = pq.ParquetFile(pa.PythonFile(file, "r"), metadata=footer, page_checksum_verification=True)
            return shard.read_row_group(row).to_pylist()[0]
        except OSError as error:  # pyarrow's: the row has been fetched.
            raise ValueError(error) from error

    def _footer(self, path: str, num_bytes: int) -> pq.FileMetaData:
        """Return what says where the rows of a shard are: fetched once, and not for a while when that has failed."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            footer = self._footers.get(path)
            if footer is not None:
                return footer
            failed_at, error = self._failures.get(path, (-math.inf, None))
            if time.monotonic() - failed_at < _SECONDS_WITHOUT_ASKING:
                raise error
            try:
                footer = self._fetch_footer(path, num_bytes)
            except (*_STORE_ERRORS, *_CONTENT_ERRORS) as error:
                self._failures[path] = time.monotonic(), error
                raise
        with self._lock:
            self._footers[path] = footer
            while len(self._footers) > _MAX_FOOTERS:
                self._footers.popitem(last=False)
        return footer

    def _fetch_footer(self, path: str, num_bytes: int) -> pq.FileMetaData:
        tail = self._fetch(path, num_bytes - _FOOTER_TAIL, num_bytes)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length < num_bytes:
            raise ValueError("it does not end like a Parquet file of the length that the index says")
        content = self._fetch(path, num_bytes - _FOOTER_TAIL - length, num_bytes)
        footer = pq.read_metadata(io.BytesIO(_MAGIC + content))
        found, expected = footer.schema.to_arrow_schema(), WINDOW_FEATURES.arrow_schema
        if not found.equals(expected):
            raise ValueError(f"its columns are {', '.join(found.names)}, not those of a shard")
        return footer

    def _fetch(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Fetch a file or a part of it, again if that fails."""
        for attempt in range(1, self.max_attempts + 1):
            try:
                content = _in_time(lambda: self._ask(path, start, end), self.timeout_seconds)
                if start is not None and len(content) != end - start:
                    raise EOFError(f"{len(content):,} of {end - start:,} bytes came")
                return content
            except _FINAL_ERRORS:
                raise
            except _STORE_ERRORS:
                if attempt == self.max_attempts:
                    raise
                time.sleep(min(2.0 ** (attempt - 1), self.timeout_seconds) / 4)
        raise AssertionError("unreachable")

    def _ask(self, path: str, start: int | None, end: int | None) -> bytes:
        files, folder = fsspec.core.url_to_fs(self.url, **self.storage_options)
        content = files.cat_file(f"{folder}/{path}", start=start, end=end)
        # Some servers give the whole file, whatever part is asked for.
        is_whole = start is not None and len(content) >= end > end - start
        return content[start:end] if is_whole and start > 0 else content


class _Part(io.RawIOBase):
    """A file of which one part is there."""

    def __init__(self, content: bytes, start: int, num_bytes: int):
        self._content, self._start, self._num_bytes, self._position = content, start, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        first = self._position - self._start
        if first < 0:
            raise ValueError("a column of the row lies elsewhere")
        part = self._content[first : len(self._content) if size < 0 else first + size]
        self._position += len(part)
        return part


def start_fetching(work: Callable[[], ResultT]) -> "concurrent.futures.Future[ResultT]":
    """Run `work` in a thread that nobody has to wait for, also not at the end of the program."""
    outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    threading.Thread(target=_run, args=(work, outcome), name="ShardStore", daemon=True).start()
    return outcome


def _in_time(work: Callable[[], ResultT], seconds: float) -> ResultT:
    try:
        return start_fetching(work).result(seconds)
    except concurrent.futures.TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _run(work: Callable[[], ResultT], outcome: "concurrent.futures.Future[ResultT]") -> None:
    try:
        outcome.set_result(work())
    except (*_STORE_ERRORS, *_CONTENT_ERRORS, VideoReadError, ImportError, MemoryError) as error:
        outcome.set_exception(error)
    finally:
        # Without effect on an outcome; after any other error, nobody waits in vain.
        outcome.cancel()
        del outcome
