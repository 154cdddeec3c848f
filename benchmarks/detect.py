"""Detection in a whole video: frames per second, where the time goes, and memory against the length of the video.

    python benchmarks/detect.py [--models demo ava22_vit_b] [--seconds 60] [--memory_seconds 10 600]

The videos, 640x360 at 30 Hz in H.264, are made on the spot. `demo` is the model in the package, other names are
recipes with random weights and the frames at their full size; `--short_side` makes them smaller. Every line is
measured in a process of its own. "ahead" is how many times faster the thread that decodes ahead makes it, against the
same work one after the other in the same process; of several rounds, the fastest counts.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import torch

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.detection_classquery import ClipDetector, Sampling, assemble_clips
from classquery.engine.checkpoint import load_detector
from classquery.engine.detection.detection import detect_in
from classquery.engine.detection.drawing import write_annotated_video
from classquery.engine.detection.people import link_people
from classquery.engine.detection.video_sources import open_source


FRAMES_PER_SECOND = 30
SIZE = 640, 360
PARTS = ("decoding", "processing", "model")


def main() -> None:
    """Measure all that is asked for, each in a process, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["demo", "ava22_vit_b"])
    parser.add_argument("--seconds", type=int, default=60, help="length of the video")
    parser.add_argument("--seconds_of_recipes", type=int, help="of this only so much for recipes, on slow machines")
    parser.add_argument("--short_side", type=int, help="of the frames that recipes see")
    parser.add_argument("--memory_seconds", type=int, nargs="*", default=[10, 600])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--single", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.single:
        print(json.dumps(globals()[json.loads(arguments.single)["measure"]](**json.loads(arguments.single)["case"])))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    with tempfile.TemporaryDirectory() as folder:
        print(f"{device}; 640x360 at {FRAMES_PER_SECOND} Hz, one keyframe per second\n")
        print("| model | video | detection, frames/s | decoding | processing | model | ahead | drawing, frames/s |")
        print("|---|---|---|---|---|---|---|---|")
        for model in arguments.models:
            seconds = arguments.seconds if model == "demo" else arguments.seconds_of_recipes or arguments.seconds
            case = {
                "model": model,
                "video": make_video(folder, seconds),
                "short_side": arguments.short_side,
                "batch_size": arguments.batch_size,
                "num_rounds": 3 if model == "demo" else 1,
            }
            print(speed_row(run_alone("speed", case), model), flush=True)
        print("\n| video | peak memory | ratio |\n|---|---|---|")
        first = None
        for seconds in arguments.memory_seconds:
            peak = run_alone("memory", {"video": make_video(folder, seconds)})["megabytes"]
            first = first or peak
            print(f"| {seconds} s | {peak:.0f} MB | {peak / first:.3f} |", flush=True)


def run_alone(measure: str, case: dict) -> dict:
    """Measure in another process."""
    command = [sys.executable, __file__, "--single", json.dumps({"measure": measure, "case": case})]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def speed_row(result: dict, model: str) -> str:
    """A line of the table of speed; shares are of the time one after the other, without drawing."""
    frames, alone = result["num_frames"], sum(result[part] for part in PARTS)
    shares = " | ".join(f"{result[part] / alone:.0%}" for part in PARTS)
    return (
        f"| {model} | {frames / FRAMES_PER_SECOND:.0f} s | {frames / result['overlapped']:.0f} | {shares} "
        f"| x {result['sequential'] / result['overlapped']:.2f} | {frames / result['drawing']:.0f} |"
    )


def make_video(folder: str, seconds: int) -> str:
    """Write a video of a pattern that moves."""
    path = Path(folder) / f"{seconds}.mp4"
    if path.exists():
        return str(path)
    width, height = SIZE
    texture = np.random.default_rng(0).integers(0, 255, (height // 8 + 8, width // 8 + 64, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(seconds * FRAMES_PER_SECOND):
            shift = index % 400
            image = np.ascontiguousarray(texture[:height, shift : shift + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def make_detector(model: str, short_side: int | None, batch_size: int) -> ClipDetector:
    """The demo model, or a recipe with random weights; thresholds let a few detections through."""
    if model == "demo":
        loaded, processor = load_detector("demo")
    else:
        recipe = load_recipe(model)
        processor = ClassQueryVideoProcessor(**recipe.processor)
        if short_side is not None:
            processor.size["shortest_edge"] = short_side
        torch.manual_seed(0)
        loaded = ClassQueryForVideoActionDetection(ClassQueryConfig(**recipe.model))
    loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    return ClipDetector.from_options(
        loaded, processor, threshold=0.0, actor_threshold=0.0, top_k=3, batch_size=batch_size
    )


class Stopwatch:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds = Counter()

    def timed(self, part: str, function: Callable) -> Callable:
        """Wrap a function."""

        def run(*arguments, **options):
            started = time.perf_counter()
            result = function(*arguments, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[part] += time.perf_counter() - started
            return result

        return run

    def timed_items(self, part: str, items: Iterable) -> Iterator:
        """Wrap an iterable."""
        iterator = iter(items)
        return iter(self.timed(part, lambda: next(iterator, None)), None)


def speed(model: str, video: str, short_side: int | None, batch_size: int, num_rounds: int) -> dict:
    """Seconds of everything."""
    detector, sampling = make_detector(model, short_side, batch_size), Sampling()
    # Whatever is made at the first use.
    list(itertools.islice(detect_in(open_source(video), detector, sampling), 1))

    overlapped, rounds = [], []
    for _ in range(num_rounds):
        started = time.perf_counter()
        frames = list(detect_in(open_source(video), detector, sampling))
        overlapped.append(time.perf_counter() - started)
        rounds.append(detect_one_after_the_other(video, detector, sampling))
    fastest = min(rounds, key=lambda seconds: seconds["sequential"])

    frames = link_people(frames)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_annotated_video(video, Path(folder) / "drawn.mp4", frames)
    drawing = time.perf_counter() - started
    return fastest | {
        "num_frames": open_source(video).num_frames,
        "overlapped": min(overlapped),
        "drawing": drawing,
    }


def detect_one_after_the_other(video: str, detector: ClipDetector, sampling: Sampling) -> dict[str, float]:
    """Do what `detect_in` does, without a thread, and with a stopwatch."""
    watch = Stopwatch()
    started = time.perf_counter()
    source = open_source(video)
    resize = watch.timed("resizing", detector.resize)
    forward = detector.model.forward
    detector.model.forward = watch.timed("model", forward)
    clips = watch.timed_items(
        "decoding", assemble_clips(source.frames, sampling.plan(detector.model.config, source), resize)
    )
    while batch := list(itertools.islice(clips, detector.batch_size)):
        detector.detect(batch, (source.height, source.width))
    detector.model.forward = forward
    sequential = time.perf_counter() - started
    # Conversion to RGB counts as decoding, resizing as processing, like normalisation and selection.
    decoding = watch.seconds["decoding"] - watch.seconds["resizing"]
    return {
        "sequential": sequential,
        "decoding": decoding,
        "processing": sequential - decoding - watch.seconds["model"],
        "model": watch.seconds["model"],
    }


def memory(video: str) -> dict:
    """Peak of the process, in megabytes."""
    detector = make_detector("demo", None, 4)
    for _ in detect_in(open_source(video), detector, Sampling()):
        pass
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    main()
