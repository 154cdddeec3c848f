"""A web page to drop a video on: what it shows is what `run_action_detection.py --do_predict --tubes` writes.

    python -m classquery.engine.demo [--model DIR_OR_NAME] [--port 7860]
    python -m classquery.engine.demo --write_space DIR [--model NAME]

The second command writes a Space for the Hub that needs nothing else: `app.py`, `requirements.txt`, the package itself
and a README with its metadata; with `--push_to_hub USER/NAME` it is uploaded, too.
"""

import argparse
import copy
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from PIL import Image

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.demo.movies import write_demo_movie
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.checkpoint import demo_notice, load_detector
from classquery.engine.detection.detection import with_attention
from classquery.engine.detection.drawing import draw_keyframe
from classquery.engine.detection.people import Person, list_people
from classquery.engine.detection.prediction import SUMMARY_FILE, PredictionArguments, predict_videos
from classquery.engine.detection.results import FrameDetections
from classquery.engine.detection.writing import read_detections


if TYPE_CHECKING:
    import gradio

_TITLE = "Who does what, where and when"
_HELP = "Drop a video, press **Detect**, then click a line of the table to see where the class looks for that person."
_COLUMNS = ["person", "action", "seconds", "score"]
_DOWNLOADS = ("detections.json", "detections.csv", "timeline.csv", "cvat.xml", "cvat_labels.json", "annotated.mp4")
_DEFAULT_KEYFRAMES_PER_SECOND = 2
_MAX_KEYFRAMES_PER_SECOND = 10
# The table scrolls by itself on narrow screens, the page does not.
_CSS = "img, video { max-width: 100%; height: auto; } .gradio-container { overflow-x: hidden; }"


@dataclass(frozen=True)
class _Result:
    """What was found in a video; its files go when the session does."""

    folder: tempfile.TemporaryDirectory
    written: Path
    video: str
    frames: list[FrameDetections]
    people: list[Person]

    @property
    def rows(self) -> list[list]:
        """The timelines of all people, as `_COLUMNS`."""
        return [
            [
                person.person_id,
                segment.label,
                f"{segment.start_seconds:.1f} – {segment.end_seconds:.1f}",
                round(segment.score, 2),
            ]
            for person in self.people
            for segment in person.timeline
        ]


class VideoPage:
    """What the page does, apart from how it looks.

    Args:
        model: The detector, in evaluation mode.
        processor: The processor that belongs to it.
    """

    def __init__(self, model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor):
        self.model = model
        self.processor = processor

    @property
    def notice(self) -> str | None:
        """What to know before using the model."""
        return demo_notice(self.model)

    def detect(self, video: str, threshold: float, keyframes_per_second: float) -> _Result:
        """Detect in a video file.

        Raises:
            ValueError: If there is no video, or it cannot be read.
        """
        if not video:
            raise ValueError("There is no video yet: drop one, or take the example.")
        folder = tempfile.TemporaryDirectory(prefix="classquery-")
        processor = copy.copy(self.processor)
        # What is set on the page holds for all classes, whatever is saved for some.
        processor.score_threshold, processor.class_thresholds = threshold, None
        predict_videos(
            [video],
            folder.name,
            self.model,
            processor,
            PredictionArguments(tubes=True),
            keyframes_per_second=keyframes_per_second,
        )
        written = Path(folder.name) / Path(video).stem
        summary = json.loads((written / SUMMARY_FILE).read_text(encoding="utf-8"))
        if "error" in summary:
            raise ValueError(summary["error"])
        facts, frames = read_detections(written / "detections.json")
        return _Result(folder, written, video, frames, list_people(frames, end_seconds=facts.duration_seconds))

    def attention(self, result: _Result, row: int) -> tuple[Image.Image, str]:
        """Draw where the class of a row of the table looks, in the frame in which its score is highest.

        Returns:
            The picture, and what it shows.
        """
        person, segment = [(person, segment) for person in result.people for segment in person.timeline][row]
        scores = [
            dict(actor.actions).get(segment.label, -1.0) * (segment.start_seconds <= seconds <= segment.end_seconds)
            for seconds, actor in zip(person.seconds, person.actors, strict=True)
        ]
        best = int(np.argmax(scores))
        frame = next(frame for frame in result.frames if frame.frame_index == person.frame_indices[best])
        actor = with_attention(result.video, frame, person.actors[best], [segment.label], self.model, self.processor)
        shown = dataclasses.replace(frame, actors=[actor])
        image = Image.fromarray(ClipReader().read(result.video, [frame.frame_index])[0])
        picture = draw_keyframe(image, shown, attention_label=segment.label, attention_person=person.person_id)
        return picture, f"Person {person.person_id}, **{segment.label}**, at {frame.seconds:.1f} s"


def build_page(page: VideoPage) -> "gradio.Blocks":
    """Lay out the page.

    Raises:
        ImportError: If gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the web page needs gradio: pip install classquery[demo]")
    import gradio

    with gradio.Blocks(title=_TITLE, delete_cache=(3600, 86400)) as blocks:
        gradio.Markdown(f"# {_TITLE}\n{_HELP}")
        if page.notice:
            gradio.Markdown(f"**{page.notice}** The example is one of these movies.")
        result = gradio.State()
        with gradio.Row():
            with gradio.Column(min_width=300):
                video = gradio.Video(label="video", sources=["upload"], elem_id="video")
                with gradio.Row():
                    example = gradio.Button("Take the example", elem_id="example")
                    detect = gradio.Button("Detect", variant="primary", elem_id="detect")
                with gradio.Accordion("Options", open=False):
                    threshold = gradio.Slider(0, 1, page.processor.score_threshold, label="lowest score of an action")
                    rate = gradio.Slider(
                        0.5, _MAX_KEYFRAMES_PER_SECOND, _DEFAULT_KEYFRAMES_PER_SECOND, label="detections per second"
                    )
            with gradio.Column(min_width=300):
                annotated = gradio.Video(label="detections", interactive=False, elem_id="annotated")
        with gradio.Row():
            table = gradio.Dataframe(headers=_COLUMNS, interactive=False, elem_id="table", max_height=400)
            with gradio.Column(min_width=300):
                caption = gradio.Markdown(elem_id="caption")
                attention = gradio.Image(label="attention of a class", interactive=False, elem_id="attention")
        timeline = gradio.Image(label="timeline", interactive=False, elem_id="timeline")
        files = gradio.Files(label="files", interactive=False, elem_id="files")

        # As a default, gradio finds it, and shows the bar of `predict_videos`.
        bar = gradio.Progress(track_tqdm=True)

        def show_result(path: str, lowest: float, keyframes_per_second: float, progress=bar) -> tuple:
            try:
                found = page.detect(path, lowest, keyframes_per_second)
            except ValueError as error:
                raise gradio.Error(str(error)) from error
            written = found.written
            downloads = [str(written / name) for name in _DOWNLOADS if (written / name).exists()]
            pictures = str(written / "annotated.mp4"), str(written / "timeline.png")
            return found, *pictures, found.rows, downloads, None, "" if found.rows else "Nothing was found."

        def show_attention(found: _Result | None, event: gradio.SelectData) -> tuple:
            try:
                return page.attention(found, event.index[0])
            except VideoReadError as error:
                raise gradio.Error(str(error)) from error

        example.click(lambda: str(write_demo_movie(tempfile.mkdtemp(), "validation", 0)), outputs=video)
        detect.click(
            show_result,
            [video, threshold, rate],
            [result, annotated, timeline, table, files, attention, caption],
            concurrency_limit=1,
            show_progress_on=annotated,
        )
        table.select(show_attention, result, [attention, caption], concurrency_limit=1)
    return blocks


def launch(model: str = "demo", **options) -> None:
    """Serve the page until it is stopped; `options` are those of gradio's `launch`."""
    import gradio

    page = VideoPage(*load_detector(model))
    if page.notice:
        print(page.notice)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page.model.eval().to(device)
    build_page(page).queue(max_size=20).launch(css=_CSS, theme=gradio.themes.Soft(), **options)


# A Space


def write_space(folder: str | Path, model: str = "demo") -> Path:
    """Write what a Space needs: the package itself, so that it runs whatever is released where.

    Args:
        folder: Where to write; made if it is missing.
        model: Name of the model on the Hub, or `demo`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    for name in ("classquery", "classquery.configuration", "classquery.data", "classquery.kernels"):
        source = importlib.import_module(name).__path__[0]
        target = folder / name.replace(".", "/")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app.py").write_text(_APP.format(model=model), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_SPACE_README.format(title=_TITLE, sdk=_gradio_version()), encoding="utf-8")
    return folder


def _requirements() -> list[str]:
    """What the package and the page depend on, without gradio, which the Space brings in the version of its README."""
    required = [Requirement(line) for line in importlib.metadata.requires("classquery") or []]
    needed = [line for line in required if line.marker is None or _applies(line)]
    return [str(line) for line in needed if line.name != "gradio"]


def _applies(requirement: Requirement) -> bool:
    """Whether it is needed without extras or with `demo`; markers of platforms are kept for the Space to judge."""
    if "extra" not in str(requirement.marker):
        return True
    if requirement.marker.evaluate({"extra": "demo"}):
        requirement.marker = None
        return True
    return False


def _gradio_version() -> str:
    return importlib.metadata.version("gradio")


_APP = """from classquery.engine.demo import launch


launch("{model}")
"""

_SPACE_README = """---
title: {title}
sdk: gradio
sdk_version: {sdk}
app_file: app.py
license: apache-2.0
---

Video action detection with [ClassQuery](https://arxiv.org/abs/2407.19698): drop a video, see who does what from when
to when, and where each class looks.
"""


def main() -> None:
    """Serve the page, or write a Space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="folder or Hub name of a model; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines, too")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--write_space", metavar="DIR", help="write a Space instead of serving the page")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="upload it, too")
    arguments = parser.parse_args()
    try:
        if arguments.write_space or arguments.push_to_hub:
            folder = write_space(arguments.write_space or tempfile.mkdtemp(), arguments.model)
            if arguments.push_to_hub:
                push_space(folder, arguments.push_to_hub)
            return
        launch(arguments.model, server_name=arguments.host, server_port=arguments.port)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def push_space(folder: Path, name: str) -> None:
    """Upload a folder as a Space; needs `hf auth login`."""
    hub = HfApi()
    hub.create_repo(name, repo_type="space", space_sdk="gradio", exist_ok=True)
    hub.upload_folder(repo_id=name, repo_type="space", folder_path=folder)


if __name__ == "__main__":
    main()
