"""What decoders cost beside `ClipReader` with PyAV; called by `python benchmarks/data.py --decoders`.

torchcodec is measured where it is installed, which takes FFmpeg of the system. Ratios are of CPU time of one thread,
medians of five rounds in which all ways take turns; 1 is PyAV behind `ClipReader`.
"""

import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from movies import encode_scene, scene

from classquery.data.video import reader as video_reader
from classquery.data.video.reader import ClipReader


NUM_ROUNDS, NUM_CLIPS = 5, 12
NUM_FRAMES, STRIDE = 16, 4
NUM_SHORT_FILES = 2000

# From a path to what reads frames of it: uint8 (num_frames, height, width, 3).
Opened = Callable[[np.ndarray], np.ndarray]


def compare_decoders() -> None:
    """Make the files, measure and print."""
    torch.set_num_threads(1)
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in scene()]
    with tempfile.TemporaryDirectory() as folder:
        compare_short(Path(folder), [frame.reformat(320, 240) for frame in frames[:160]])
        compare_random(Path(folder), [*frames, *frames[::-1], *frames[:300]])
        print_index_share(Path(folder))


def compare_short(folder: Path, frames: list[av.VideoFrame]) -> None:
    """Print what it costs to open a short file for one read."""
    print(f"| frames | GOP | wanted | PyAV, ms | {' | '.join(WAYS)} |\n|---|---|---|---|{'---|' * len(WAYS)}")
    for num_frames, gop in itertools.product((40, 160), (12, 250)):
        path = folder / f"{num_frames}_{gop}.mp4"
        encode_scene(path, frames[:num_frames], "libx264", {"g": str(gop)})
        middle = range(num_frames // 4, num_frames * 3 // 4)
        for wanted, numbers in (("all", range(num_frames)), ("middle half", middle)):
            print_ratios(
                f"{num_frames} | {gop} | {wanted}",
                [partial(read_once, way, str(path), np.array(numbers)) for way in (with_pyav, *WAYS.values())],
            )


def compare_random(folder: Path, frames: list[av.VideoFrame]) -> None:
    """Print what it costs to read random clips from a file that stays open."""
    print(f"\n| random clips 16x4 of 640x360 | PyAV, ms | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    for gop in (12, 250):
        path = folder / f"gop_{gop}.mp4"
        options = {"g": str(gop), "crf": "20", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
        encode_scene(path, frames, "libx264", options)
        starts = np.random.default_rng(0).integers(0, len(frames) - NUM_FRAMES * STRIDE, NUM_CLIPS)
        clips = [start + STRIDE * np.arange(NUM_FRAMES) for start in starts]
        opened = [way(str(path)) for way in (with_pyav, *WAYS.values())]
        print_ratios(f"key frames every {gop}", [partial(read_all, reader, clips) for reader in opened])


def read_once(way: Callable[[str], Opened], path: str, frames: np.ndarray) -> None:
    """Open a file, read frames of it and forget it."""
    way(path)(frames)


def read_all(reader: Opened, clips: list[np.ndarray]) -> None:
    """Read clips of a file that is open."""
    for clip in clips:
        reader(clip)


def print_ratios(title: str, ways: list[Callable[[], object]]) -> None:
    """Measure ways in turns and print what the first takes and the others beside it."""
    rounds = [[cpu_milliseconds(way) for way in ways] for _ in range(NUM_ROUNDS)]
    first, *others = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"| {title} | {first:.1f} | {' | '.join(f'{other / first:.2f}' for other in others)} |", flush=True)


def cpu_milliseconds(step: Callable[[], object]) -> float:
    """CPU time of a step."""
    start = time.process_time()
    step()
    return 1000 * (time.process_time() - start)


def with_pyav(path: str) -> Opened:
    """The way that is taken."""
    reader = ClipReader(backend="pyav")
    return lambda frames: reader.read(path, frames)


def with_decord(path: str) -> Opened:
    """decord with the checks and the index of this package."""
    reader = ClipReader(backend="decord")
    return lambda frames: reader.read(path, frames)


def decord_alone(path: str) -> Opened:
    """decord as data loaders use it."""
    import decord

    opened = decord.VideoReader(path, num_threads=1)
    return lambda frames: opened.get_batch(frames).asnumpy()


def torchcodec_alone(path: str) -> Opened:
    """torchcodec with the numbers of frames that it counts, as decord does."""
    from torchcodec.decoders import VideoDecoder

    opened = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    return lambda frames: opened.get_frames_at(frames.tolist()).data.numpy()


WAYS = {"decord here": with_decord, "decord alone": decord_alone}
if importlib.util.find_spec("torchcodec"):
    WAYS["torchcodec alone"] = torchcodec_alone


def print_index_share(folder: Path) -> None:
    """Read a clip of every short file in two epochs, and print what part of the second goes into the index."""
    short = folder / "short"
    short.mkdir()
    for number in range(NUM_SHORT_FILES):
        os.link(folder / "40_12.mp4", short / f"{number}.mp4")
    reader, index_video, seconds = ClipReader(), video_reader.index_video, [0.0]

    def timed_index(source: str) -> object:
        start = time.thread_time()
        index = index_video(source)
        seconds[0] += time.thread_time() - start
        return index

    def epoch() -> None:
        for path in sorted(short.iterdir()):
            reader.read(path, range(32))

    video_reader.index_video = timed_index
    shares = []
    for _ in range(2):
        seconds[0] = 0.0
        total = cpu_milliseconds(epoch) / 1000
        shares.append(f"{seconds[0] / total:.2%}")
    video_reader.index_video = index_video
    print(f"\nOf an epoch over {NUM_SHORT_FILES} short files, the index takes {shares[0]}; of the next, {shares[1]}")
