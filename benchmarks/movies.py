"""The files of `data.py`: moving, textured pictures of 640x360 at 30 frames per second, in several codecs."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from classquery.data.preparation.preparing import Encoding


HEIGHT, WIDTH, FRAMES_PER_SECOND = 360, 640, 30
SCENE_FRAMES = 600
JPEG_QUALITY = 95

# Name: file name, encoder, its options, whether it is made long.
FILES = {
    "H.264, GOP 30, by `prepare`": ("prepared.mp4", "libx264", Encoding(gop=30).x264_options, True),
    "H.264, GOP 30, x264's defaults": ("short.mp4", "libx264", {"g": "30", "crf": "18", "preset": "veryfast"}, True),
    "H.264, GOP 250, x264's defaults": ("long.mp4", "libx264", {"g": "250", "crf": "18", "preset": "veryfast"}, True),
    "XviD avi of 20 s": ("xvid.avi", "mpeg4", {"b": "2M", "g": "250", "bf": "2"}, False),
}


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
