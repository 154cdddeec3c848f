"""What a clip and a detected frame cost, in CPU milliseconds of one thread; `data.py --against COMMIT` runs it.

It takes a folder with `gop_12.mp4`, `gop_250.mp4` (640x360, three B-frames between two others), `xvid.avi` (320x240,
as the videos of UCF101-24), `moving.mp4` for detection and `short/*.mp4`; it answers each line of its input with a
line of JSON. It runs with this build of the package and with older ones.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import classquery
from classquery import ClassQueryVideoProcessor
from classquery.data.transforms import ClipTransform, shift_hsv
from classquery.engine.checkpoint import load_detector


# The older name first: an editable installation adds its own new modules to whatever package is called so.
try:
    from classquery.data.clip_reader import ClipReader
except ImportError:
    from classquery.data.video.reader import ClipReader

NUM_CLIPS = 12
BOXES = torch.tensor([[[0.1, 0.1, 0.5, 0.9]]])
# Name: file, frames, stride, short side of the crop and before it, and changes of hue, saturation and value.
CASES = {
    "GOP 12": ("gop_12.mp4", 16, 4, 256, 288, (20, 0.4, 0.4)),
    "GOP 250": ("gop_250.mp4", 16, 4, 256, 288, (20, 0.4, 0.4)),
    "XviD avi": ("xvid.avi", 32, 1, 224, 256, (20, 0.5, 0.5)),
}


def main(folder: Path) -> None:
    """Measure once for each line of the input."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    detector = load_detector("demo")
    for _ in sys.stdin:
        figures = {}
        for name, case in CASES.items():
            figures |= measure_clips(name, folder, *case)
        frames = torch.randint(0, 256, (16, 256, 455, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        figures["hue, saturation and value, 16 frames of 455x256"] = cpu_milliseconds(
            lambda frames=frames: shift_hsv(frames, 13.0, 0.3, -0.2), 5
        )
        figures["index of a short file, second epoch over 600"] = measure_index(sorted(folder.glob("short/*.mp4")))
        figures["peak of memory with the above, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures |= measure_detection(str(folder / "moving.mp4"), *detector)
        print(json.dumps(figures), flush=True)


def cpu_milliseconds(step: Callable[[], object], repetitions: int) -> float:
    """Return the CPU time of a step, the mean of some repetitions after one to warm up."""
    step()
    start = time.process_time()
    for _ in range(repetitions):
        step()
    return 1000 * (time.process_time() - start) / repetitions


def measure_clips(
    name: str, folder: Path, file: str, num_frames: int, stride: int, crop: int, resize: int, jitter: tuple
) -> dict[str, float]:
    """Read random clips, the same in every build, alone and on the way to a batch."""
    path, reader = str(folder / file), ClipReader()
    num_video_frames = reader.info(path).num_frames
    rng = np.random.default_rng(0)
    starts = iter(rng.integers(0, num_video_frames - stride * num_frames, 2 * (NUM_CLIPS + 1)).tolist())
    colors = dict(zip(("hue_jitter", "saturation_jitter", "value_jitter"), jitter, strict=True))
    transform = ClipTransform(resize, crop, **colors)
    processor = ClassQueryVideoProcessor(size={"shortest_edge": crop})
    generator = torch.Generator().manual_seed(0)

    def read() -> np.ndarray:
        return reader.read(path, next(starts) + stride * np.arange(num_frames))

    def train() -> None:
        frames, *_ = transform(torch.from_numpy(read()).permute(0, 3, 1, 2), BOXES, generator)
        processor([frames])

    kind = f"{name}, {num_frames}x{stride}"
    return {
        f"{kind}: decode": cpu_milliseconds(read, NUM_CLIPS),
        f"{kind}: decode, transform, processor": cpu_milliseconds(train, NUM_CLIPS),
    }


def measure_index(paths: list[Path]) -> float:
    """Ask for what is known of many files, after having asked before: CPU milliseconds per file."""
    reader = ClipReader()
    for path in paths:
        reader.info(path)
    start = time.process_time()
    for path in paths:
        reader.info(path)
    return 1000 * (time.process_time() - start) / len(paths)


def measure_detection(path: str, model: torch.nn.Module, processor: ClassQueryVideoProcessor) -> dict[str, float]:
    """Detect in a video with the demo model: CPU milliseconds per frame, and of these without the model."""
    seconds = [0.0]
    forward = model.forward

    def timed_forward(*arguments, **options):
        start = time.thread_time()
        outputs = forward(*arguments, **options)
        seconds[0] += time.thread_time() - start
        return outputs

    options = {"threshold": 0.0, "actor_threshold": 0.0, "top_k": 3}
    list(classquery.detect(path, model, processor, **options))
    model.forward = timed_forward
    start = time.process_time()
    list(classquery.detect(path, model, processor, **options))
    total = time.process_time() - start
    model.forward = forward
    num_frames = ClipReader().info(path).num_frames
    return {
        "detection, per frame": 1000 * total / num_frames,
        "of these decoding and processing": 1000 * (total - seconds[0]) / num_frames,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
