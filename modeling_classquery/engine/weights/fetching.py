"""A published file on this machine: fetched once for all processes, checked, and the same as the first time."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from classquery.checkpoint_files_classquery import CheckpointError, reading
from classquery.data.whole_files import replacing, write_json
from classquery.engine.weights.downloading import download
from classquery.engine.weights.licence import require_licence
from classquery.engine.weights.zoo import PublishedWeights


logger = logging.getLogger(__name__)

_MAX_LISTED = 10
_MEGABYTE = 1e6


def fetch(weights: PublishedWeights) -> Path:
    """The file of published weights: as it was fetched, or what belongs to them in an archive.

    Raises:
        CheckpointError: If the licence is not accepted, or the file cannot be had, is none of those, or differs from
            the one that was there first.
    """
    with alone(weights.path):
        require_licence()
        if not weights.path.exists():
            _fetch_and_check(weights)
        else:
            _check(weights, weights.path)
        _compare(weights, weights.path)
        return _from_archive(weights) if weights.member else weights.path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the context, no other process makes the same file or folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting for another process, which is getting %s", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_and_check(weights: PublishedWeights) -> None:
    """Fetch a file into a folder of its own, from which it comes when it is known to be right."""
    incoming = weights.path.parent / "incoming" / weights.file
    if not incoming.exists():
        download(weights, incoming)
    try:
        _check(weights, incoming)
        _compare(weights, incoming)
    except CheckpointError:
        incoming.unlink()
        raise
    incoming.replace(weights.path)


# What a file is


def _check(weights: PublishedWeights, path: Path) -> None:
    """Refuse a file of another size or kind, before anything reads it."""
    smallest, largest = weights.bounds
    size = path.stat().st_size / _MEGABYTE
    with path.open("rb") as file:
        head = file.read(512)
    problem = None
    if head.lstrip()[:1] == b"<":
        problem = "it is a page of the web"
    elif not (_is_archive if weights.member else _is_torch_file)(path, head):
        kind = "archive (zip or tar)" if weights.member else "file that torch.save wrote"
        problem = f"it is no complete {kind}"
    elif not smallest <= size <= largest:
        problem = f"it has {size:,.0f} MB, and {smallest:,.0f} to {largest:,.0f} are possible"
    if problem:
        raise CheckpointError(
            f"{path} does not hold {weights.name}: {problem}; remove it and try again, or fetch it by hand from "
            f"{weights.link} and save it as {weights.path}"
        )


def _is_torch_file(path: Path, head: bytes) -> bool:
    if not zipfile.is_zipfile(path):
        # Before torch 1.6; whether it is complete is seen when it is read.
        return head.startswith(b"\x80\x02")
    with reading(path), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _is_archive(path: Path, _: bytes) -> bool:
    return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)


def _compare(weights: PublishedWeights, path: Path) -> None:
    """Note the digest of a file when it is there for the first time, and refuse another one later."""
    record_path = weights.path.with_name(f"{weights.file}.json")
    found = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    if not record_path.exists():
        write_json(record_path, found | {"link": weights.link, "date": time.strftime("%Y-%m-%d")}, indent=2)
        return
    with reading(record_path, "no record of a file"):
        record = json.loads(record_path.read_text(encoding="utf-8"))
        expected, date = record["sha256"], record["date"]
    if found["sha256"] != expected:
        raise CheckpointError(
            f"{path} is another file than the {weights.file} of {date}: its SHA-256 is {found['sha256']}, and was "
            f"{expected}. It is damaged, or was replaced where it comes from: remove it and fetch it again; to trust "
            f"the new one, remove {record_path}, too"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


# Archives


def _from_archive(weights: PublishedWeights) -> Path:
    """The weights that are meant among those in an archive, as a file."""
    stored = weights.path.with_name(weights.name)
    found = [path for suffix in (".mat", ".pth") if (path := stored.with_suffix(suffix)).exists()]
    if found:
        return found[0]
    with reading(weights.path), _opened(weights.path) as (names, open_member):
        members = [name for name in names if re.fullmatch(weights.member, Path(name).name.lower())]
        if len(members) != 1:
            listed = ", ".join(names[:_MAX_LISTED]) + (" ..." if len(names) > _MAX_LISTED else "")
            raise CheckpointError(
                f"{len(members)} files of {weights.path} could be {weights.name}: it holds {listed}. Unpack the one "
                "you mean, and give its path instead of the name"
            )
        path = stored.with_suffix(".mat" if members[0].lower().endswith(".mat") else ".pth")
        with open_member(members[0]) as source, replacing(path) as partial, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    """Names of the files in an archive, and what opens one of them to read its bytes."""
    # In this order: a tar file whose last member is a zip file passes for one.
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            yield [member.name for member in archive if member.isfile()], archive.extractfile
    else:
        with zipfile.ZipFile(path) as archive:
            yield [info.filename for info in archive.infolist() if not info.is_dir()], archive.open
