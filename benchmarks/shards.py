"""What clips cost from shards and from the movies they were cut from; called by `python benchmarks/data.py --shards`.

Movies of 15 minutes, 640x360 at 30 frames per second, with keyframes in some stretches at one a second, as AVA has.
Training clips (16 frames, each the fourth, shuffled) are decoded by one process, the ways in turns; CPU time is that
of all its threads, with all that it takes to fetch rows.
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from movies import make_movie

from classquery.data import load_action_dataset, make_clips, write_shards


# The stand-in for a store is that of the tests.
sys.path.append(str(Path(__file__).parent.parent / "tests"))
from http_store import HttpStore


CLIPS = {"num_labels": 80, "num_frames": 16, "frame_stride": 4, "frames_per_second": 30.0}
GOPS = (12, 250)
NUM_MOVIES, NUM_STRETCHES, NUM_ROUNDS = 2, 3, 2
LATENCY = 0.02
SHARD_BYTES = 20_000_000


def compare_shards(minutes: float) -> None:
    """Print what clips cost each way, and how big shards of movies of such a length are."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for gop in GOPS:
            make_data(root / f"gop_{gop}", partial(make_movie, gop=gop, minutes=minutes), minutes)
        sizes = {name: write(root, *options) for name, options in SHARDS.items()}
        print("| shards | MB | bytes of a clip |\n|---|---|---|")
        for name, (size, num_clips) in sizes.items():
            print(f"| {name} | {size / 1e6:.1f} | {size / num_clips:,.0f} |")
        print("\n| clips from | CPU ms, median | against the movie |\n|---|---|---|")
        for gop in GOPS:
            compare_ways(root, gop)
        print_store(root)


# Directory of the data, folder of the shards, and how they are written.
SHARDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "encoded, 8 keyframes a row": ("gop_250", "encoded", {}),
    "encoded, 1 keyframe a row": ("gop_250", "single", {"keyframes_per_row": 1}),
    "copied from key frames every 12": ("gop_12", "copied_12", {"encoding": None}),
    "copied from key frames every 250": ("gop_250", "copied_250", {"encoding": None}),
}


def make_data(folder: Path, make_movie: Callable[[Path], Path], minutes: float) -> None:
    """Write movies that are the same under several names, and keyframes at some places of each."""
    (folder / "videos").mkdir(parents=True)
    movie = make_movie(folder)
    rng, lines = np.random.default_rng(0), []
    for number in range(NUM_MOVIES):
        os.link(movie, folder / "videos" / f"movie{number}.mp4")
        for start in rng.choice(np.arange(902, 890 + minutes * 60, 10), NUM_STRETCHES, replace=False).astype(int):
            lines += [f"movie{number},{start + i:04d},0.2,0.2,0.6,0.8,12,1" for i in range(8)]
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"ava_{split}_v2.2.csv").write_text("\n".join(sorted(lines)) + "\n")


def write(root: Path, data: str, target: str, options: dict[str, Any]) -> tuple[int, int]:
    """Write shards and return their bytes and the number of their clips."""
    write_shards("ava", root / data, root / target, splits=["train"], shard_bytes=SHARD_BYTES, **options)
    shards = load_action_dataset("shards", root / target, "train")
    return sum(file["num_bytes"] for file in shards.files), sum(file["num_clips"] for file in shards.files)


def compare_ways(root: Path, gop: int) -> None:
    """Print the CPU time of a clip from a movie and from its shards, in turns."""
    files = make_clips(load_action_dataset("ava", root / f"gop_{gop}", "train"), **CLIPS)

    def from_files(epoch: int) -> Iterator[dict]:
        order = np.random.default_rng(epoch).permutation(len(files))
        return (files[int(index)] for index in order)

    def from_shards(name: str) -> Callable[[int], Iterator[dict]]:
        stream = make_clips(load_action_dataset("shards", root / name, "train"), shuffle=True, **CLIPS)

        def clips(epoch: int) -> Iterator[dict]:
            stream.set_epoch(epoch)
            return iter(stream)

        return clips

    ways = {
        f"the movie, key frames every {gop}": from_files,
        "encoded shards": from_shards("encoded"),
        "copied shards": from_shards(f"copied_{gop}"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for epoch, (name, clips) in itertools.product(range(NUM_ROUNDS + 1), ways.items()):
        start, count = time.process_time(), sum(1 for _ in clips(epoch))
        if epoch:  # The first round lists the packets of the movies.
            times[name].append((time.process_time() - start) / count)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"| {name} | {1000 * median:.1f} | {first / median:.2f} |", flush=True)


def print_store(root: Path) -> None:
    """Print how fast two workers get clips from a store that takes a while to answer, against a disk."""
    rates = {}
    with HttpStore(root / "encoded", latency=LATENCY) as server:
        for name, url in (("disk", root / "encoded"), ("store", server.url)) * 2:
            start = time.perf_counter()
            stream = make_clips(load_action_dataset("shards", url, "train"), shuffle=True, **CLIPS)
            next(iter(stream))
            first = time.perf_counter() - start
            part = stream.for_process(0, 1, batch_size=4, is_training=True)
            loader = torch.utils.data.DataLoader(part, 4, num_workers=2, collate_fn=len)
            start = time.perf_counter()
            num_clips = sum(loader)
            rates[name] = num_clips / (time.perf_counter() - start), first
    (disk, first_disk), (store, first_store) = rates["disk"], rates["store"]
    print(
        f"\nTwo workers: {disk:.1f} clips a second from a disk, {store:.1f} from a store that answers after "
        f"{1000 * LATENCY:.0f} ms, {store / disk:.0%}; the first clip after {first_disk:.2f} and {first_store:.2f} s."
    )
