"""Hostile and odd files, made here: an answer or one clear error, in bounded time and memory. See docs/reliability.md.

python -m pytest -m slow -n 0 -s tests/test_hostile_files.py    # prints the table of the document
"""

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mutations import try_mutations
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.checkpoint_files_classquery import CheckpointError, read_matlab, read_tensors
from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames
from classquery.engine.checkpoint import load_detector
from classquery.kernels import build


pytestmark = pytest.mark.slow
MAX_SECONDS, MAX_BYTES = 60, 4 * 2**30


@pytest.fixture(scope="module")
def table():
    """Takes what came out, by kind, and prints it."""
    rows: dict[str, Counter] = {}
    yield rows
    print("\n| kind | inputs | read | refused |\n|---|---|---|---|")
    for kind, outcomes in rows.items():
        print(f"| {kind} | {outcomes.total()} | {outcomes['read']} | {outcomes['refused']} |")


# Videos


def write_video(
    path: Path, seconds, width: int = 96, height: int = 64, rate: int = 30, codec: str = "libx264"
) -> None:
    """Write a video with a frame at each of some times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = Fraction(1, max(1000, rate))
        for number, time in enumerate(seconds):
            image = np.full((height, width, 3), 16 + number % 200, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time * max(1000, rate)), Fraction(1, max(1000, rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def good(path: Path) -> None:
    write_video(path, np.arange(60) / 30)


def gap_of_30_days(path: Path) -> None:
    write_video(path, [*(np.arange(30) / 30), *(30 * 86_400 + np.arange(30) / 30)])


def damaged_in_the_middle(path: Path) -> None:
    good(path)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff" * 200 + content[middle + 200 :])


def cut(path: Path) -> None:
    good(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def animated_webp(path: Path) -> None:
    frames = [Image.new("RGB", (64, 48), (20 * number, 0, 0)) for number in range(8)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


def huge_image(path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(path)


def not_utf8(path: Path) -> None:
    good(path.with_name("plain.mp4"))
    os.rename(path.with_name("plain.mp4"), os.fsencode(path.parent) + b"/caf\xe9.mp4")


# By name of the file: how it is written, and whether frames have to come out of it. None: either is right.
KINDS = {
    "good.mp4": (good, True),
    "cam1:morning.mp4": (good, True),
    "gap.mkv": (gap_of_30_days, True),
    "tall.mkv": (lambda path: write_video(path, np.arange(30) / 30, 2, 1500), None),
    "wide.mkv": (lambda path: write_video(path, np.arange(30) / 30, 2000, 2), None),
    "fast.mkv": (lambda path: write_video(path, np.arange(200) / 100_000, rate=100_000), True),
    "one_frame.mp4": (lambda path: write_video(path, [0.0]), True),
    "middle.mp4": (damaged_in_the_middle, None),
    "cut.mp4": (cut, False),
    "cut.mkv": (cut, None),
    "empty.mp4": (lambda path: path.touch(), False),
    "text.mp4": (lambda path: path.write_text("no video\n" * 1000), False),
    "zeros.avi": (lambda path: path.write_bytes(bytes(2**20)), False),
    "animated.webp": (animated_webp, None),
    "huge.png": (huge_image, None),
    "folder.mp4": (Path.mkdir, False),
    "caf\udce9.mp4": (not_utf8, True),
    "absent.mp4": (lambda path: None, False),
}
DETECT = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
from classquery import detect, load_detector
model, processor = load_detector("demo")
for path in json.loads(sys.stdin.read()):
    start = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    try:
        frames = sum(1 for frame in detect(path, model, processor))
        answer = {"frames": frames}
    except (OSError, RuntimeError, ValueError) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    answer |= {"seconds": sum(usage[:2]) - start, "bytes": usage.ru_maxrss * 1024}
    print(json.dumps(answer), flush=True)
"""


def test_odd_and_damaged_videos_are_answered_in_bounded_time_and_memory(tmp_path, table):
    """Also those after a bad one: all in one process, which must live to the end."""
    paths = []
    for name, (write, _) in KINDS.items():
        write(tmp_path / name)
        paths.append(str(tmp_path / name))

    result = subprocess.run([sys.executable, "-c", DETECT], input=json.dumps(paths), capture_output=True, text=True)

    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(answers) == len(KINDS)
    outcomes = Counter()
    for (name, (_, must_give)), answer in zip(KINDS.items(), answers, strict=True):
        outcomes["refused" if "error" in answer else "read"] += 1
        assert answer["seconds"] < MAX_SECONDS, (name, answer)
        assert answer["bytes"] < MAX_BYTES, (name, answer)
        assert must_give is None or must_give == ("frames" in answer and answer["frames"] > 0), (name, answer)
        assert len(answer.get("message", "")) < 1000, (name, answer)
    table["odd and damaged videos, folders and images, `detect`"] = outcomes


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")])
def test_mutated_videos(tmp_path, table, name, codec):
    path = tmp_path / name
    write_video(path, np.arange(24) / 30, codec=codec)

    def read(path: Path) -> list[np.ndarray]:
        whole = [frame.image for frame in iterate_frames(path)]
        num_frames = ClipReader().info(path).num_frames
        return [*whole, *ClipReader().read(path, [0, num_frames // 2, num_frames - 1])]

    def check(images: list[np.ndarray]) -> None:
        assert len(images) >= 3
        assert all(image.ndim == 3 and image.shape[2] == 3 for image in images)

    table[f"videos, {path.suffix} with {codec}"] = try_mutations(
        read, path, VideoReadError, count=300, check=check, max_seconds=MAX_SECONDS
    )


# Checkpoints


def test_mutated_folders_of_detectors(tmp_path, table):
    ClassQueryForVideoActionDetection(tiny_config()).save_pretrained(tmp_path)
    ClassQueryVideoProcessor(size={"shortest_edge": 40}).save_pretrained(tmp_path)
    names = ClassQueryForVideoActionDetection(tiny_config()).state_dict().keys()

    def check(loaded) -> None:
        model, processor = loaded
        assert model.state_dict().keys() >= names
        assert all(side is None or side >= 1 for side in dict(processor.size).values())

    for name in ("config.json", "video_preprocessor_config.json", "model.safetensors"):
        table[f"`{name}` of a detector"] = try_mutations(
            lambda path: load_detector(str(path.parent)), tmp_path / name, CheckpointError, count=200, check=check
        )


def test_mutated_files_of_weights(tmp_path, table):
    tensors = {f"layer.{index}.weight": torch.full((5, 7), float(index)) for index in range(4)}
    save_file(tensors, tmp_path / "weights.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "weights.pth")
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    def check(read: dict[str, torch.Tensor]) -> None:
        for tensor in read.values():
            tensor.double().sum()  # touches all of its memory

    for name in ("weights.safetensors", "weights.pth", "old.pth"):
        table[f"weights, `{name}`"] = try_mutations(
            read_tensors, tmp_path / name, CheckpointError, count=1500, check=check
        )


def test_mutated_matlab_files(tmp_path, table):
    for is_packed in (True, False):
        path = tmp_path / "weights.mat"
        savemat(path, {"conv1_w": np.arange(600.0).reshape(20, 30)}, do_compression=is_packed)
        kind = f"weights, `.mat` {'packed' if is_packed else 'not packed'}"
        table[kind] = try_mutations(read_matlab, path, CheckpointError, count=40)


# Compiled operators


def test_mutated_caches_of_compiled_operators(tmp_path, table, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.cache_folder.cache_clear()
    content = np.random.default_rng(0).bytes(5000)
    path = build.cached(b"a key", ".so", lambda: content)

    def check(found: Path) -> None:
        assert found.read_bytes() == content

    outcomes = try_mutations(
        lambda path: build.cached(b"a key", ".so", lambda: content), path, build.BuildError, count=1500, check=check
    )
    build.cache_folder.cache_clear()
    assert outcomes["refused"] == 0
    table["compiled operators in the cache: made again"] = outcomes


def test_all_of_this_left_memory_within_bounds():
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MAX_BYTES
