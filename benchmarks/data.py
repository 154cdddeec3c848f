"""Measure how fast random clips are read, against reopening the video for each and against extracted JPEG images.

    python benchmarks/data.py
    python benchmarks/data.py --shards
    python benchmarks/data.py --minutes 15 --seconds 8 --workers 1 2
    python benchmarks/data.py --against aaa7d40
    python benchmarks/data.py --decoders

Clips are 16 frames, each the fourth, at random places of moving, textured pictures of 640x360 at 30 frames per second.
Long files are made of one encoded scene, repeated; the JPEG images are those of the scene (quality 95). Every line is
measured in processes of its own, which read for some seconds, the lines of one file in turn. "CPU ms" is the time of
all cores per clip, which other work on the machine hardly changes; ratios are of clips per second, and in brackets of
CPU time, both against the first line. Memory is the peak of a process beyond what it has before the first clip.

Then what becomes of a clip is compared with decoding it: the training transform of AVA, and the processor.

`--against COMMIT` measures something else: what clips, colours, the index and detection cost now and at an older
commit, which is put into a temporary folder, in turns: medians of five rounds of CPU time of one thread
(`clip_cost.py`). `--decoders` compares the decoders where a short file is opened for one read of many of its frames
and where clips are read at random from one that is open, and says how much of a second epoch goes into the index.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from decoders import compare_decoders
from movies import SCENE_FRAMES, make_files, make_files_of_both
from older_build import compare
from shards import compare_shards

from classquery import ClassQueryVideoProcessor
from classquery.data.transforms import ClipTransform
from classquery.data.video import index as video_index
from classquery.data.video.frame_folder import read_frame_folder
from classquery.data.video.reader import ClipReader


NUM_FRAMES, STRIDE = 16, 4


def main() -> None:
    """Make the files, measure and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the long files, as AVA's movies")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--against", metavar="COMMIT", help="compare with the build of an older commit instead")
    parser.add_argument("--decoders", action="store_true", help="compare the decoders instead, and count the index")
    parser.add_argument("--shards", action="store_true", help="compare shards with the movies that they hold instead")
    arguments = parser.parse_args()
    if arguments.shards:
        compare_shards(arguments.minutes)
        return
    if arguments.decoders:
        compare_decoders()
        return
    if arguments.against:
        with tempfile.TemporaryDirectory() as folder:
            make_files_of_both(Path(folder))
            compare(arguments.against, Path(__file__).parent / "clip_cost.py", [folder])
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), arguments.minutes)
        for name, path in paths.items():
            print(f"\n{name}, {path.stat().st_size / 1e6:.0f} MB")
            print("| read by | workers | clips / s | CPU ms | ratio | MB |\n|---|---|---|---|---|---|")
            for workers in arguments.workers:
                print_lines(path, Path(folder) / "frames", workers, arguments.seconds)
        compare_processing(paths)


# Reading


def print_lines(path: Path, images: Path, workers: int, seconds: float) -> None:
    """Measure each way to read a file, and print a line for each."""
    first = None
    for name in READERS:
        if "decord" in name and path.suffix == ".avi":
            continue  # It would give wrong frames.
        result = measure(name, path, images, workers, seconds)
        first = first or result
        rate, cpu, memory = result
        print(
            f"| {name} | {workers} | {rate:.1f} | {1000 * cpu:.0f} | {rate / first[0]:.2f} ({first[1] / cpu:.2f}) | "
            f"{memory:.0f} |",
            flush=True,
        )


def measure(name: str, path: Path, images: Path, workers: int, seconds: float) -> tuple[float, float, float]:
    """Return clips per second, CPU seconds per clip and the peak of memory of a process, in MB."""
    context = multiprocessing.get_context("forkserver")
    # The processes are forked from one that has imported everything and read nothing.
    context.set_forkserver_preload(["classquery.data.preparation.preparing", "classquery.data.transforms"])
    ready, results = context.Barrier(workers), context.Queue()
    arguments = [(name, str(path), str(images), seed, seconds, ready, results) for seed in range(workers)]
    processes = [context.Process(target=read_for_a_while, args=values) for values in arguments]
    for process in processes:
        process.start()
    rates, cpu, memory = zip(*(results.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    return sum(rates), sum(cpu) / workers, max(memory)


def read_for_a_while(
    name: str,
    path: str,
    images: str,
    seed: int,
    seconds: float,
    ready: "multiprocessing.Barrier",
    results: multiprocessing.Queue,
) -> None:
    """Read random clips and report clips per second, CPU seconds per clip and memory; runs in a process of its own."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    before = peak_megabytes()
    read, num_frames = READERS[name](path, images)
    span = (NUM_FRAMES - 1) * STRIDE + 1

    def read_clip() -> None:
        read(rng.integers(0, num_frames - span) + STRIDE * np.arange(NUM_FRAMES))

    read_clip()
    ready.wait()
    num_clips, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while num_clips < 3 or time.perf_counter() < start + seconds:
        read_clip()
        num_clips += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    results.put((num_clips / wall, cpu / num_clips, peak_megabytes() - before))


def peak_megabytes() -> float:
    """Return the peak of memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Reader = tuple[Callable[[np.ndarray], np.ndarray], int]


def kept_open(backend: str) -> Callable[[str, str], Reader]:
    """Return the maker of a reader that keeps the file open."""

    def make(path: str, images: str) -> Reader:
        reader = ClipReader(backend=backend)
        return lambda frames: reader.read(path, frames), reader.info(path).num_frames

    return make


def reopened(path: str, images: str) -> Reader:
    """Open and index the file for each clip, with the same reader."""

    def read(frames: np.ndarray) -> np.ndarray:
        video_index.cache.clear()
        return ClipReader().read(path, frames)

    return read, ClipReader().info(path).num_frames


def reopened_decord(path: str, images: str) -> Reader:
    """Open the file for each clip with decord alone, as many data loaders do."""
    import decord

    return (
        lambda frames: decord.VideoReader(path, num_threads=1).get_batch(frames).asnumpy(),
        len(decord.VideoReader(path)),
    )


def extracted(path: str, images: str) -> Reader:
    """Read JPEG images from a folder."""
    return lambda frames: read_frame_folder(images, frames), SCENE_FRAMES


READERS = {
    "`ClipReader`": kept_open("auto"),
    "`ClipReader` with decord": kept_open("decord"),
    "(a) reopened for each clip": reopened,
    "(a) reopened, decord alone": reopened_decord,
    "(b) JPEG images": extracted,
}


# Processing


def compare_processing(paths: dict[str, Path]) -> None:
    """Print what the training transform and the processor cost beside decoding, on one thread."""
    torch.set_num_threads(1)
    transform = ClipTransform(288, 256, hue_jitter=20, saturation_jitter=0.4, value_jitter=0.4)
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 256})
    boxes, generator = torch.tensor([[[0.1, 0.1, 0.5, 0.9]]]), torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    print("\nOf a clip, CPU ms\n| file | decode | train: transform | and processor | evaluate: processor |")
    print("|---|---|---|---|---|")
    for name, path in paths.items():
        reader = ClipReader()
        starts = iter(rng.integers(0, reader.info(path).num_frames - 64, 100).tolist())
        video = str(path)
        frames = torch.from_numpy(reader.read(video, STRIDE * np.arange(NUM_FRAMES))).permute(0, 3, 1, 2)
        transformed, *_ = transform(frames, boxes, generator)
        steps = [
            lambda reader=reader, video=video, starts=starts: reader.read(
                video, next(starts) + STRIDE * np.arange(NUM_FRAMES)
            ),
            lambda frames=frames: transform(frames, boxes, generator),
            lambda transformed=transformed: processor([transformed]),
            lambda frames=frames: processor([frames]),
        ]
        print(f"| {name} | " + " | ".join(f"{cpu_milliseconds(step):.0f}" for step in steps) + " |", flush=True)


def cpu_milliseconds(step: Callable[[], object], repetitions: int = 8) -> float:
    """Return the CPU time of a step, the mean of some repetitions after one to warm up."""
    step()
    start = time.process_time()
    for _ in range(repetitions):
        step()
    return 1000 * (time.process_time() - start) / repetitions


if __name__ == "__main__":
    main()
