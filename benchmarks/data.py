"""Measure how fast random clips are read, against reopening the video for each and against extracted JPEG images.

    python benchmarks/data.py
    python benchmarks/data.py --shards
    python benchmarks/data.py --minutes 15 --seconds 8 --workers 1 2
    python benchmarks/data.py --against aaa7d40
    python benchmarks/data.py --short

Clips are 16 frames, each the fourth, at random places of moving, textured pictures of 640x360 at 30 frames per second.
Long files are made of one encoded scene, repeated; the JPEG images are those of the scene (quality 95). Every line is
measured in processes of its own, which read for some seconds, the lines of one file in turn. "CPU ms" is the time of
all cores per clip, which other work on the machine hardly changes; ratios are of clips per second, and in brackets of
CPU time, both against the first line. Memory is the peak of a process beyond what it has before the first clip.

Then what becomes of a clip is compared with decoding it: the training transform of AVA, and the processor.

`--against COMMIT` measures something else: what clips, colours, the index and detection cost now and at an older
commit, which is put into a temporary folder, in turns: medians of five rounds of CPU time of one thread
(`clip_cost.py`). `--short` compares the decoders where a short file is opened for one read of many of its frames.
"""

import argparse
import itertools
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import torch
from older_build import compare
from PIL import Image
from shards import compare_shards
from tqdm import tqdm

from classquery import ClassQueryVideoProcessor
from classquery.data.preparation.preparing import Encoding
from classquery.data.transforms import ClipTransform
from classquery.data.video import index as video_index
from classquery.data.video.frame_folder import read_frame_folder
from classquery.data.video.reader import ClipReader


HEIGHT, WIDTH, FRAMES_PER_SECOND = 360, 640, 30
SCENE_FRAMES = 600
NUM_FRAMES, STRIDE = 16, 4
JPEG_QUALITY = 95

# Name: file name, encoder, its options, whether it is made long.
FILES = {
    "H.264, GOP 30, by `prepare`": ("prepared.mp4", "libx264", Encoding(gop=30).x264_options, True),
    "H.264, GOP 30, x264's defaults": ("short.mp4", "libx264", {"g": "30", "crf": "18", "preset": "veryfast"}, True),
    "H.264, GOP 250, x264's defaults": ("long.mp4", "libx264", {"g": "250", "crf": "18", "preset": "veryfast"}, True),
    "XviD avi of 20 s": ("xvid.avi", "mpeg4", {"b": "2M", "g": "250", "bf": "2"}, False),
}


def main() -> None:
    """Make the files, measure and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the long files, as AVA's movies")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--against", metavar="COMMIT", help="compare with the build of an older commit instead")
    parser.add_argument("--short", action="store_true", help="compare the decoders on short files instead")
    parser.add_argument("--shards", action="store_true", help="compare shards with the movies that they hold instead")
    arguments = parser.parse_args()
    if arguments.shards:
        compare_shards(make_movie, arguments.minutes)
        return
    if arguments.short:
        compare_short()
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


# Files


def scene() -> Iterator[np.ndarray]:
    """Yield uint8 RGB frames: a wide textured picture that the camera moves over, and something that passes by."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    picture = (picture + rng.normal(0, 6, (2 * HEIGHT, 2 * WIDTH, 1))).clip(0, 255).astype(np.uint8)
    for index in range(SCENE_FRAMES):
        x, y = int(WIDTH / 2 * (1 + np.sin(index / 50))), int(HEIGHT / 2 * (1 + np.cos(index / 70)))
        frame = picture[y : y + HEIGHT, x : x + WIDTH].copy()
        left = index * 5 % (WIDTH - 80)
        frame[100:260, left : left + 80] = picture[160:0:-1, :80]
        yield frame


def make_files(folder: Path, minutes: float) -> dict[str, Path]:
    """Write the images and videos, and return the path of each video by its name."""
    (folder / "frames").mkdir()
    frames = []
    for index, image in enumerate(tqdm(scene(), total=SCENE_FRAMES, desc="Rendering", leave=False)):
        Image.fromarray(image).save(folder / "frames" / f"{index + 1:06d}.jpg", quality=JPEG_QUALITY)
        frames.append(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p"))
    paths = {}
    for name, (file_name, encoder, options, is_long) in tqdm(FILES.items(), desc="Encoding", leave=False):
        path = folder / file_name
        encode_scene(path, frames, encoder, options)
        repetitions = round(minutes * 60 * FRAMES_PER_SECOND / SCENE_FRAMES) if is_long else 1
        paths[name] = repeat(path, repetitions) if repetitions > 1 else path
    return paths


def make_movie(folder: Path, gop: int, minutes: float) -> Path:
    """Write the scene, repeated, as a long H.264 file."""
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in scene()]
    path = folder / "scene.mp4"
    encode_scene(path, frames, "libx264", {"g": str(gop), "crf": "18", "preset": "veryfast"})
    return repeat(path, round(minutes * 60 * FRAMES_PER_SECOND / SCENE_FRAMES))


def make_files_of_both(folder: Path) -> None:
    """Write the files of `clip_cost.py`: 50 s of moving pictures, a short avi, and 600 names of a short clip."""
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in scene()]
    # Back and forth, so that no picture jumps.
    frames = [*frames, *frames[::-1], *frames[:300]]
    for gop in (12, 250):
        options = {"g": str(gop), "crf": "20", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
        encode_scene(folder / f"gop_{gop}.mp4", frames, "libx264", options)
    encode_scene(folder / "moving.mp4", frames[:600], "libx264", {"preset": "veryfast", "crf": "26"})
    small = [frame.reformat(320, 240) for frame in frames[:170]]
    encode_scene(folder / "xvid.avi", small, "mpeg4", {"b": "1M", "g": "250", "bf": "2"})
    (folder / "short").mkdir()
    encode_scene(folder / "short" / "000.mp4", small[:40], "libx264", {"g": "12"})
    for number in range(1, 600):
        os.link(folder / "short" / "000.mp4", folder / "short" / f"{number:03d}.mp4")


def encode_scene(path: Path, frames: list[av.VideoFrame], encoder: str, options: dict[str, str]) -> None:
    """Encode the frames."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder, rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, "yuv420p"
        for index, frame in enumerate(frames):
            frame.pts, frame.pict_type = index, 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def repeat(source: Path, repetitions: int) -> Path:
    """Copy the packets of a video several times, one after the other, without encoding anew."""
    target = source.with_stem(f"{source.stem}_repeated")
    with av.open(str(source)) as video, av.open(str(target), "w") as output:
        packets = [packet for packet in video.demux(video=0) if packet.size]
        stream = output.add_stream_from_template(video.streams.video[0])
        duration = round(SCENE_FRAMES / FRAMES_PER_SECOND / packets[0].time_base)
        for _ in range(repetitions):
            for packet in packets:
                packet.stream = stream
                output.mux(packet_copy(packet, duration))
    source.unlink()
    return target


def packet_copy(packet: av.Packet, delay: int) -> av.Packet:
    """Return a packet as it is, and move the original by a delay."""
    copy = av.Packet(bytes(packet))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration, copy.is_keyframe = packet.pts, packet.dts, packet.duration, packet.is_keyframe
    packet.pts, packet.dts = packet.pts + delay, packet.dts + delay
    return copy


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


# Short files


def compare_short() -> None:
    """Print what one read of a short H.264 file takes, opening it included: medians of CPU time, PyAV is 1."""
    torch.set_num_threads(1)
    frames = [
        av.VideoFrame.from_ndarray(image, format="rgb24").reformat(320, 240, format="yuv420p")
        for image in itertools.islice(scene(), 160)
    ]
    print("| frames | GOP | wanted | PyAV, ms | decord here | decord alone |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for num_frames, gop in itertools.product((40, 160), (12, 250)):
            path = Path(folder) / f"{num_frames}_{gop}.mp4"
            encode_scene(path, frames[:num_frames], "libx264", {"g": str(gop)})
            middle = range(num_frames // 4, num_frames * 3 // 4)
            for wanted, numbers in (("all", range(num_frames)), ("middle half", middle), ("every fourth", None)):
                indices = np.array(range(0, num_frames, 4) if numbers is None else numbers)
                pyav, decord, alone = short_reads(str(path), indices)
                print(f"| {num_frames} | {gop} | {wanted} | {pyav:.1f} | {decord / pyav:.2f} | {alone / pyav:.2f} |")


def short_reads(path: str, frames: np.ndarray) -> list[float]:
    """CPU milliseconds of a read with PyAV, decord behind `ClipReader` and decord alone, measured in turns."""
    alone, _ = reopened_decord(path, "")
    ways = [
        lambda: ClipReader(backend="pyav").read(path, frames),
        lambda: ClipReader(backend="decord").read(path, frames),
        lambda: alone(frames),
    ]
    rounds = [[cpu_milliseconds(way, 3) for way in ways] for _ in range(5)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


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
