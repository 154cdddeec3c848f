"""Write a data set as shards, with the frames that its clips need; what a killed run has finished is kept."""

import contextlib
import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm

from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.names import SPLITS, DatasetName
from classquery.data.preparation.checking import process_context
from classquery.data.preparation.preparing import Encoding
from classquery.data.shards.card import make_card
from classquery.data.shards.cutting import SHARD_ENCODING, cut_folder, cut_video, frames_of_folder
from classquery.data.shards.layout import (
    CARD_FILE,
    CLIP_FEATURES,
    INDEX_FEATURES,
    INDEX_FILE,
    LAYOUT_VERSION,
    WINDOW_FEATURES,
    index_file,
    row_range,
    shard_file,
)
from classquery.data.shards.windows import CLIP_SECONDS, KEYFRAMES_PER_ROW, Window, frames_between, plan_windows
from classquery.data.video.index import index_video
from classquery.data.video.opening import VideoReadError
from classquery.data.whole_files import remove_left_behind, replacing, write_json


RECORD_FILE = "shards.jsonl"
SHARD_BYTES = 500_000_000
_DEFAULT_FPS = 25.0
_VIDEO_BYTES = "video.bytes"
_JOBS_PER_WORKER = 4
_HASHED_AT_ONCE = 1 << 20


class _Job(NamedTuple):
    window: Window
    encoding: Encoding | None


def write_shards(
    name: DatasetName,
    data_dir: str | Path,
    output_dir: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    shard_bytes: int = SHARD_BYTES,
    clip_seconds: float = CLIP_SECONDS,
    keyframes_per_row: int = KEYFRAMES_PER_ROW,
    encoding: Encoding | None = SHARD_ENCODING,
    num_workers: int = 0,
    license_id: str | None = None,
    **options: Any,
) -> list[str]:
    """Write the videos and annotations of a data set as shards, those that are not finished yet.

    A call that was interrupted is continued by the next one with the same arguments, at the last shard that is whole.
    The files are the same for any number of processes.

    Args:
        name: A name of `load_action_dataset`.
        data_dir: Its folder.
        output_dir: Folder of the shards, a new one.
        splits: Which to write.
        shard_bytes: Size of a shard, which a row of more has for itself.
        clip_seconds, keyframes_per_row: See `plan_windows`.
        encoding: How the videos are written; None copies packets where the frames then are exactly those of the
            original, and encodes where they would not be.
        num_workers: Processes that encode; 0 for this one.
        license_id: Licence of the data set, for its card: an identifier of the Hub.
        options: Of `load_action_dataset`.

    Returns:
        What went wrong, one text for each window that is left out.

    Raises:
        AnnotationError, FileNotFoundError: If the annotations cannot be read, or videos are missing.
        OSError: If the disk is full.
        ValueError: If the folder holds something else, or shards that were written in another way.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    if encoding is not None and (encoding.gop == 0 or encoding.short_side):
        raise ValueError("shards need a distance of key frames of 1 or more, and keep the size of the frames")
    output_dir = Path(output_dir)
    labels = load_action_labels(name, data_dir)
    rows = {split: load_action_dataset(name, data_dir, split, **options) for split in splits}
    windows = {
        split: list(plan_windows(split_rows, clip_seconds=clip_seconds, keyframes_per_row=keyframes_per_row))
        for split, split_rows in rows.items()
    }
    about: dict[str, Any] = {"dataset": name, "encoding": encoding and asdict(encoding), "shard_bytes": shard_bytes}
    about |= {"clip_seconds": clip_seconds, "keyframes_per_row": keyframes_per_row}
    has_tubes = _have_tubes(rows)
    records = _Records(output_dir, _plan_digest(about, windows))
    for split, split_windows in windows.items():
        _write_split(
            split, [_Job(window, encoding) for window in split_windows], output_dir, records, about, num_workers
        )
    index = {"version": LAYOUT_VERSION, **about, "has_tubes": has_tubes, "license": license_id}
    index |= {"labels": {str(label): text for label, text in labels.items()}}
    index["splits"] = {split: _write_index(split, output_dir, records, rows[split]) for split in splits}
    write_json(output_dir / INDEX_FILE, index, indent=1)
    with replacing(output_dir / CARD_FILE) as partial_path:
        partial_path.write_text(make_card(index, output_dir.resolve().name), encoding="utf-8")
    return [lost for split in splits for record in records.of(split) for lost in record["lost"]]


def _have_tubes(rows: dict[str, Dataset]) -> bool:
    kinds = {seconds is None for split_rows in rows.values() for seconds in split_rows["video_seconds"]}
    if len(kinds) > 1:
        raise ValueError("shards hold keyframes or whole videos with tubes, the annotations have both: write two sets")
    return kinds == {True}


def _plan_digest(about: dict[str, Any], windows: dict[str, list[Window]]) -> str:
    """What tells one way of writing from any other: the options, the clips, and the state of the videos."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    states: dict[str, str] = {}
    for split, window in ((split, window) for split, split_windows in windows.items() for window in split_windows):
        if window.video not in states:
            status = Path(window.video).stat()
            states[window.video] = f"{status.st_size} {status.st_mtime_ns}"
        clips = [(row["clip_id"], row["tubes"]) for row in window.rows]
        digest.update(f"{split} {states[window.video]} {clips}".encode(errors="surrogateescape"))
    return digest.hexdigest()


class _Records:
    """What `shards.jsonl` says: the shards that are whole, and what they were made of."""

    def __init__(self, folder: Path, plan: str):
        self._path, self._plan = folder / RECORD_FILE, plan
        self._shards: dict[str, list[dict[str, Any]]] = {}
        if not self._path.is_file() and folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than shards: choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        for record in self._read():
            if record["plan"] != plan:
                raise ValueError(
                    f"{folder} holds shards of other options or of videos that have changed since: choose a new "
                    "folder, or remove this one"
                )
            if (folder / record["file"]).is_file():
                self._shards.setdefault(record["split"], []).append(record)
        self._path.touch()

    def _read(self) -> Iterator[dict[str, Any]]:
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []:
            # A line that was cut off by a kill is that of a shard to be written again.
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)

    def of(self, split: str) -> list[dict[str, Any]]:
        """Shards of a split that follow each other from the first one on."""
        shards = {record["stop"]: record for record in self._shards.get(split, [])}
        starts = {record["start"]: record for record in shards.values()}
        chain, next_window = [], 0
        while next_window in starts:
            chain.append(starts[next_window])
            next_window = starts[next_window]["stop"]
        return chain

    def add(self, record: dict[str, Any]) -> None:
        """Note a shard that is whole."""
        record |= {"plan": self._plan}
        with self._path.open("a", encoding="utf-8") as file:
            # A newline first, for a line that was cut off.
            file.write("\n" * (self._path.stat().st_size > 0) + json.dumps(record))
        self._shards.setdefault(record["split"], []).append(record)


# Shards


def _write_split(
    split: str, jobs: list[_Job], folder: Path, records: _Records, about: dict[str, Any], num_workers: int
) -> None:
    finished = records.of(split)
    first = finished[-1]["stop"] if finished else 0
    (folder / "data").mkdir(exist_ok=True)
    remove_left_behind(folder / "data", {Path(shard_file(split, number)).name for number in range(len(jobs))})
    writer = _SplitWriter(split, folder, records, about["shard_bytes"], first, len(finished))
    num_bytes = sum(record["num_bytes"] for record in finished)
    with tqdm(total=len(jobs), initial=first, desc=f"Writing {split}", unit="row") as progress, writer:
        for result in _in_order(_cut, jobs[first:], num_workers):
            num_bytes += writer.add(result)
            progress.set_postfix_str(f"{num_bytes / 1e6:,.1f} MB", refresh=False)
            progress.update()


def _in_order(function: Callable[[_Job], Any], jobs: Sequence[_Job], num_workers: int) -> Iterator[Any]:
    """Call a function with each job in so many processes; a few results wait, not all."""
    if num_workers == 0:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(min(num_workers, len(jobs)) or 1, mp_context=process_context()) as processes:
        waiting: deque[Future] = deque()
        for job in jobs:
            waiting.append(processes.submit(function, job))
            if len(waiting) == _JOBS_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _SplitWriter:
    """Fills one shard after the other."""

    def __init__(self, split: str, folder: Path, records: _Records, shard_bytes: int, first_window: int, number: int):
        self._split, self._folder, self._records, self._shard_bytes = split, folder, records, shard_bytes
        self._window, self._number = first_window, number
        self._open: contextlib.ExitStack | None = None
        self._begin()

    def _begin(self) -> None:
        self._start, self._num_bytes, self._num_rows, self._num_clips = self._window, 0, 0, 0
        self._lost: list[str] = []

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None and self._window > self._start:
            self._finish()
        elif self._open is not None:
            self._open.__exit__(kind, *_)

    def add(self, result: dict[str, Any] | str) -> int:
        """Write a row, or note why there is none; return its bytes."""
        if isinstance(result, str):
            self._lost.append(result)
            self._window += 1
            return 0
        num_bytes = len(result["video"]["bytes"])
        if self._num_rows and self._num_bytes + num_bytes > self._shard_bytes:
            self._finish()
        self._write(pa.Table.from_pylist([result], schema=WINDOW_FEATURES.arrow_schema))
        self._window += 1
        self._num_bytes += num_bytes
        self._num_rows += 1
        self._num_clips += len(result["clips"])
        return num_bytes

    def _write(self, table: pa.Table) -> None:
        if self._open is None:
            self._open = contextlib.ExitStack()
            path = self._open.enter_context(replacing(self._folder / shard_file(self._split, self._number)))
            self._file = self._open.enter_context(
                pq.ParquetWriter(path, table.schema, **_PARQUET_OPTIONS, write_page_checksum=True)
            )
        # A row group of its own: that is what a reader fetches.
        self._file.write_table(table)

    def _finish(self) -> None:
        if self._open is None:
            # Nothing but windows that are lost, which still are noted.
            self._write(WINDOW_FEATURES.arrow_schema.empty_table())
        if self._open is not None:
            self._open.close()
            self._open = None
        path = self._folder / shard_file(self._split, self._number)
        sha256 = _sha256_of(path)
        counts = {"num_rows": self._num_rows, "num_clips": self._num_clips, "num_bytes": path.stat().st_size}
        record = {"split": self._split, "file": shard_file(self._split, self._number), **counts, "sha256": sha256}
        self._records.add(record | {"start": self._start, "stop": self._window, "lost": self._lost})
        self._number += 1
        self._begin()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _parquet_options() -> dict[str, Any]:
    """Compress everything but the videos, and keep no statistics of single rows."""
    buffer = io.BytesIO()
    pq.write_table(WINDOW_FEATURES.arrow_schema.empty_table(), buffer)
    schema = pq.ParquetFile(buffer).schema
    paths = [schema.column(number).path for number in range(len(schema))]
    compression = {path: "none" if path == _VIDEO_BYTES else "zstd" for path in paths}
    return {"compression": compression, "use_dictionary": False, "write_statistics": False}


_PARQUET_OPTIONS = _parquet_options()


# Rows


def _cut(job: _Job) -> dict[str, Any] | str:
    """Make the row of a window, or say what is wrong with it. Called in the processes."""
    window = job.window
    try:
        return _row_of_folder(job) if window.source == "frames" else _row_of_video(job)
    except VideoReadError as error:
        return f"{window.name}: {error}"


def _row_of_video(job: _Job) -> dict[str, Any]:
    window = job.window
    seconds = index_video(window.video).frame_seconds
    cut = cut_video(window.video, _frames_of(window, seconds), job.encoding)
    times = {"frame_seconds": seconds[cut.frames.start : cut.frames.stop].tolist(), "frames_fps": None}
    return _row(window, cut.content, cut.frames, len(seconds)) | times


def _row_of_folder(job: _Job) -> dict[str, Any]:
    window, fps = job.window, job.window.rows[0]["fps"]
    num_frames = frames_of_folder(window.video)
    frames = _frames_of(window, np.arange(num_frames) / (fps or _DEFAULT_FPS))
    cut = cut_folder(window.video, frames, fps or _DEFAULT_FPS, job.encoding)
    return _row(window, cut.content, cut.frames, num_frames) | {"frame_seconds": None, "frames_fps": fps}


def _frames_of(window: Window, frame_seconds: np.ndarray) -> range:
    if window.seconds is not None:
        return frames_between(frame_seconds, window.seconds)
    annotated = window.rows[0]["num_frames"] or len(frame_seconds)
    if annotated > len(frame_seconds):
        raise VideoReadError(
            f"cannot read {window.video}: {annotated} frames are annotated, it has {len(frame_seconds)}; fetch it "
            "again"
        )
    return range(annotated)


def _row(window: Window, content: bytes, frames: range, num_frames: int) -> dict[str, Any]:
    return {
        "video": {"path": f"{window.name}.mp4", "bytes": content},
        "first_frame": frames.start,
        "num_frames": len(frames),
        "is_start": frames.start == 0,
        "is_end": frames.stop == num_frames,
        "clips": [{name: row.get(name) for name in CLIP_FEATURES} for row in window.rows],
    }


# What lies beside the shards


def _write_index(split: str, folder: Path, records: _Records, rows: Dataset) -> dict[str, Any]:
    """Write which clips each row has, and return the counts of a split."""
    shards = [record for record in records.of(split) if record["num_rows"]]
    tables = [_index_of(number, folder / record["file"]) for number, record in enumerate(shards)]
    (folder / "index").mkdir(exist_ok=True)
    schema = INDEX_FEATURES.arrow_schema
    with replacing(folder / index_file(split)) as partial_path:
        pq.write_table(pa.concat_tables([schema.empty_table(), *tables]), partial_path, write_page_checksum=True)
    names = ("file", "num_rows", "num_clips", "num_bytes", "sha256")
    counts = [label for tubes in rows["tubes"] for tube in tubes for label in tube["labels"] or ()]
    actors = np.bincount(counts, minlength=1).tolist()
    return {
        "shards": [{name: record[name] for name in names} for record in shards],
        "actors_per_label": {str(label): count for label, count in enumerate(actors)},
        "lost": [lost for record in records.of(split) for lost in record["lost"]],
        "description": rows.info.description,
    }


def _index_of(shard: int, path: Path) -> pa.Table:
    file = pq.ParquetFile(path)
    clips = file.read(columns=["clips"])["clips"].to_pylist()
    rows = []
    for number, members in enumerate(clips):
        start, end = row_range(file.metadata, number)
        rows.append({"shard": shard, "row": number, "num_bytes": end - start, "clips": members})
    return pa.Table.from_pylist(rows, schema=INDEX_FEATURES.arrow_schema)
