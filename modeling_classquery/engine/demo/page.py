"""A web page to drop a video on: what it shows is what `run_action_detection.py --do_predict --tubes` writes.

Uploads and results go when their session ends, and all of them when the page does.
"""

import contextlib
import copy
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
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
from classquery.engine.demo.limits import MAX_SECONDS, MAX_UPLOAD_MB
from classquery.engine.detection.detection import with_attention
from classquery.engine.detection.drawing import draw_keyframe
from classquery.engine.detection.naming import name_videos
from classquery.engine.detection.people import Person, list_people
from classquery.engine.detection.prediction import PredictionArguments, predict_videos
from classquery.engine.detection.result_folder import SUMMARY_FILE, ResultFolder
from classquery.engine.detection.results import FrameDetections
from classquery.engine.detection.uncertain import UNCERTAIN_FILES
from classquery.engine.detection.writing import read_detections, write_detections
from classquery.engine.time_limit import TimeLimit


if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

_TITLE = "Who does what, where and when"
_HELP = "Drop a video, press **Detect**, then click a line of the table to see where the class looks for that person."
_COLUMNS = ["person", "action", "seconds", "score"]
_DEFAULT_KEYFRAMES_PER_SECOND = 2
_MAX_KEYFRAMES_PER_SECOND = 10
# The table scrolls by itself on narrow screens, the page does not.
_CSS = """
img, video { max-width: 100%; height: auto; }
.gradio-container { overflow-x: hidden; }
#timeline { max-height: 28rem; overflow-y: auto; }
#timeline .image-frame, #timeline img { width: 100%; height: auto; max-height: none; object-fit: unset; }
"""


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

    @property
    def classes(self) -> list[str]:
        """Names of what is done, the most frequent first."""
        counts = Counter(row[1] for row in self.rows)
        return [label for label, _ in counts.most_common()]

    @property
    def downloads(self) -> list[str]:
        """All that was written, but for the notes about where the upload lies on the server."""
        return [str(path) for path in sorted(self.written.iterdir()) if path.is_file() and path.name != SUMMARY_FILE]

    def rows_of(self, classes: Collection[str]) -> list[list]:
        """Those of some classes; of all, if none is named."""
        return [row for row in self.rows if not classes or row[1] in classes]


class VideoPage:
    """What the page does, apart from how it looks.

    Args:
        model: The detector, in evaluation mode.
        processor: The processor that belongs to it.
        folder: Where uploads and results are; by default where temporary files are.
        max_seconds: How long a request may take.
    """

    def __init__(
        self,
        model: ClassQueryForVideoActionDetection,
        processor: ClassQueryVideoProcessor,
        *,
        folder: str | Path | None = None,
        max_seconds: float = MAX_SECONDS,
    ):
        self.model = model
        self.processor = processor
        self.folder = folder
        self._time_limit = TimeLimit(max_seconds)
        self._folders_of_sessions: dict[str | None, set[str]] = defaultdict(set)

    @property
    def notice(self) -> str | None:
        """What to know before using the model."""
        untrained = self.model.config.untrained_classes
        of_words = f"Known by their words only, never trained: {', '.join(untrained)}." if untrained else None
        return " ".join(filter(None, (demo_notice(self.model), of_words))) or None

    def detect(self, video: str, threshold: float, keyframes_per_second: float) -> _Result:
        """Detect in a video file.

        Raises:
            ValueError: If there is no video, it cannot be read, or it takes too long.
        """
        if not video:
            raise ValueError("There is no video yet: drop one, or take the example.")
        folder = tempfile.TemporaryDirectory(prefix="result-", dir=self.folder, ignore_cleanup_errors=True)
        with contextlib.ExitStack() as on_error:
            on_error.callback(folder.cleanup)
            result = self._detect_into(folder, video, threshold, keyframes_per_second)
            on_error.pop_all()
        return result

    def _detect_into(
        self, folder: tempfile.TemporaryDirectory, video: str, threshold: float, keyframes_per_second: float
    ) -> _Result:
        processor = copy.copy(self.processor)
        # What is set on the page holds for all classes, whatever is saved for some.
        processor.score_threshold, processor.class_thresholds = threshold, None
        self._time_limit.run(
            lambda is_stopped: predict_videos(
                [video],
                folder.name,
                self.model,
                processor,
                PredictionArguments(tubes=True),
                keyframes_per_second=keyframes_per_second,
                is_stopped=is_stopped,
            )
        )
        (name,) = name_videos([video])
        written = Path(folder.name) / name.folder
        summary = ResultFolder(written).summary or {}
        if "error" in summary:
            raise ValueError(_without_path(summary["error"], video))
        facts, frames = read_detections(written / "detections.json")
        people = list_people(frames, end_seconds=facts.duration_seconds)
        write_detections(written / "detections.json", dataclasses.replace(facts, path=name.file), frames, people)
        for link_list in UNCERTAIN_FILES:  # They lead to where the upload lies on the server.
            (written / link_list).unlink(missing_ok=True)
        return _Result(folder, written, video, frames, people)

    def attention(self, result: _Result, row: int) -> tuple[Image.Image, str]:
        """Draw where the class of a row of the table looks, in the frame in which its score is highest.

        Returns:
            The picture, and what it shows.

        Raises:
            ValueError: If the video cannot be read any more, or it takes too long.
        """
        try:
            return self._time_limit.run(lambda _: self._draw_attention(result, row))
        except VideoReadError as error:
            raise ValueError(_without_path(str(error), result.video)) from error

    def _draw_attention(self, result: _Result, row: int) -> tuple[Image.Image, str]:
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

    def write_example(self) -> str:
        """Write a movie to try the page with."""
        return str(write_demo_movie(tempfile.mkdtemp(prefix="example-", dir=self.folder), "validation", 0))

    def keep_for(self, session: str | None, folder: str | Path) -> None:
        """Note that a session needs a folder among those of the page."""
        if self.folder is not None and Path(self.folder) in Path(folder).parents:
            self._folders_of_sessions[session].add(str(folder))

    def end_session(self, session: str | None) -> None:
        """Remove what no other session needs."""
        folders = self._folders_of_sessions.pop(session, set())
        # A video that two sessions uploaded is there once.
        for folder in folders.difference(*self._folders_of_sessions.values()):
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Give up whatever is being done."""
        self._time_limit.close()


def _without_path(message: str, path: str) -> str:
    """What is wrong with an uploaded file, without where it is on the server."""
    return message.replace(path, Path(path).name)


def build_page(page: VideoPage) -> "gradio.Blocks":
    """Lay out the page.

    Raises:
        ImportError: If gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the web page needs gradio: pip install classquery[demo]")
    import gradio

    with gradio.Blocks(title=_TITLE, delete_cache=(3600, 86400)) as blocks:
        _connect(page, blocks, _lay_out(page))
    return blocks


def _lay_out(page: VideoPage) -> SimpleNamespace:
    """Place the parts of the page, and return by name those that are filled or clicked."""
    import gradio

    parts = SimpleNamespace(result=gradio.State())
    gradio.Markdown(f"# {_TITLE}\n{_HELP}")
    if page.notice:
        gradio.Markdown(f"**{page.notice}** The example is one of these movies.")
    with gradio.Row():
        with gradio.Column(min_width=300):
            parts.video = gradio.Video(label="video", sources=["upload"], elem_id="video")
            with gradio.Row():
                parts.example = gradio.Button("Take the example", elem_id="example")
                parts.detect = gradio.Button("Detect", variant="primary", elem_id="detect")
            with gradio.Accordion("Options", open=False):
                parts.threshold = gradio.Slider(
                    0, 1, page.processor.score_threshold, label="lowest score of an action"
                )
                parts.rate = gradio.Slider(
                    0.5, _MAX_KEYFRAMES_PER_SECOND, _DEFAULT_KEYFRAMES_PER_SECOND, label="detections per second"
                )
        with gradio.Column(min_width=300):
            parts.annotated = gradio.Video(label="detections", interactive=False, elem_id="annotated")
    parts.files = gradio.Files(label="files", interactive=False, elem_id="files", height=220)
    with gradio.Row():
        with gradio.Column(min_width=300):
            parts.classes = gradio.Dropdown([], multiselect=True, label="only these actions", elem_id="classes")
            parts.table = gradio.Dataframe(headers=_COLUMNS, interactive=False, elem_id="table", max_height=400)
        with gradio.Column(min_width=300):
            parts.caption = gradio.Markdown(elem_id="caption")
            parts.attention = gradio.Image(label="attention of a class", interactive=False, elem_id="attention")
    parts.timeline = gradio.Image(label="timeline", interactive=False, elem_id="timeline")
    return parts


def _connect(page: VideoPage, blocks: "gradio.Blocks", parts: SimpleNamespace) -> None:
    """Say what the parts of the page do; gradio finds requests and events by the types of arguments."""
    import gradio

    # As a default, gradio finds it, and shows the bar of `predict_videos`.
    bar = gradio.Progress(track_tqdm=True)

    def note_upload(path: str, request: gradio.Request) -> None:
        page.keep_for(request.session_hash, Path(path).parent)

    def take_example(request: gradio.Request) -> str:
        path = page.write_example()
        note_upload(path, request)
        return path

    def show_result(
        path: str, lowest: float, keyframes_per_second: float, request: gradio.Request, progress=bar
    ) -> tuple:
        with _shown_errors():
            note_upload(path or "", request)
            found = page.detect(path, lowest, keyframes_per_second)
        page.keep_for(request.session_hash, found.folder.name)
        pictures = str(found.written / "annotated.mp4"), str(found.written / "timeline.png")
        choice = gradio.Dropdown(found.classes, value=[])
        note = "" if found.rows else "Nothing was found."
        return found, *pictures, choice, found.rows, found.downloads, None, note

    def show_classes(found: _Result | None, chosen: list[str]) -> list[list]:
        return found.rows_of(chosen) if found else []

    def show_attention(found: _Result | None, chosen: list[str], event: gradio.SelectData) -> tuple:
        if found is None:
            return None, ""
        row = found.rows.index(found.rows_of(chosen)[event.index[0]])
        with _shown_errors():
            return page.attention(found, row)

    def end_session(request: gradio.Request) -> None:
        page.end_session(request.session_hash)

    shown = [parts.annotated, parts.timeline, parts.classes, parts.table, parts.files, parts.attention, parts.caption]
    parts.video.upload(note_upload, parts.video)
    parts.example.click(take_example, outputs=parts.video)
    parts.detect.click(
        show_result,
        [parts.video, parts.threshold, parts.rate],
        [parts.result, *shown],
        concurrency_limit=1,
        show_progress_on=parts.annotated,
    )
    parts.classes.input(show_classes, [parts.result, parts.classes], parts.table)
    parts.table.select(
        show_attention, [parts.result, parts.classes], [parts.attention, parts.caption], concurrency_limit=1
    )
    blocks.unload(end_session)


@contextlib.contextmanager
def _shown_errors() -> Iterator[None]:
    """Show on the page what goes wrong within the context."""
    import gradio

    try:
        yield
    except ValueError as error:
        raise gradio.Error(str(error), print_exception=False) from error
    except OSError as error:
        logger.exception("a request failed")
        message = "The server cannot write its results now. Try again later."
        raise gradio.Error(message, print_exception=False) from error


def launch(
    model: str = "demo", *, max_upload_mb: int = MAX_UPLOAD_MB, max_seconds: float = MAX_SECONDS, **options
) -> None:
    """Serve the page until it is stopped, and remove all that was uploaded and made.

    Args:
        model: Folder or Hub name of a model, or `demo`.
        max_upload_mb: Size of the largest video to take, in megabytes.
        max_seconds: How long a request may take, while others wait.
        options: Those of gradio's `launch`.
    """
    with tempfile.TemporaryDirectory(prefix="classquery-page-", ignore_cleanup_errors=True) as folder:
        # Where gradio puts uploads; what is there already, it does not copy.
        os.environ["GRADIO_TEMP_DIR"] = folder
        import gradio

        page = VideoPage(*load_detector(model), folder=folder, max_seconds=max_seconds)
        if page.notice:
            print(page.notice)
        page.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        # Whoever ends a service sends this signal, not Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        blocks = build_page(page).queue(max_size=20)
        options |= {"css": _CSS, "theme": gradio.themes.Soft(), "max_file_size": f"{max_upload_mb}mb"}
        blocks.launch(prevent_thread_lock=True, **options)
        try:
            while True:
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("The page is closed.")
        finally:
            # First, or the server would wait for what hangs.
            page.close()
            blocks.close(verbose=False)


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
    return [str(line) for line in required if line.name != "gradio" and _applies(line)]


def _applies(requirement: Requirement) -> bool:
    """Whether it is needed without extras or with `demo`; markers of platforms are kept for the Space to judge."""
    if requirement.marker is None or "extra" not in str(requirement.marker):
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


def push_space(folder: Path, name: str) -> None:
    """Upload a folder as a Space; needs `hf auth login`."""
    hub = HfApi()
    hub.create_repo(name, repo_type="space", space_sdk="gradio", exist_ok=True)
    hub.upload_folder(repo_id=name, repo_type="space", folder_path=folder)
