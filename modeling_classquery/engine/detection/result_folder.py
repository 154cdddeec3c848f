"""The folder with the results of a video: complete and of one run, or as it was before."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classquery.data.whole_files import remove_left_behind, write_json
from classquery.engine.detection.corrections import CORRECTION_FILES
from classquery.engine.detection.uncertain import UNCERTAIN_FILES


SUMMARY_FILE = "summary.json"
# Everything that may be in such a folder; of what is there from an earlier run, nothing stays beside new results.
RESULT_FILES = (
    *("detections.json", "detections.csv", "annotated.mp4", "preview.png", "attention.png", "timeline.csv"),
    *("timeline.png", "ava.csv", "ava_action_list.pbtxt", *CORRECTION_FILES),
    *UNCERTAIN_FILES,
)
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class ResultFolder:
    """Where the results of a video are; `path` need not exist."""

    path: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the last run said; None where there was none, or its file is damaged."""
        try:
            content = json.loads((self.path / SUMMARY_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary of the results that are there, if they are complete; also after a run that failed later."""
        summary = self.summary or {}
        finished = summary.get("earlier") if "error" in summary else summary
        if not isinstance(finished, dict) or not isinstance(finished.get("files"), list):
            return None
        return finished if all((self.path / name).is_file() for name in finished["files"]) else None

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a folder for new results, which goes with whatever is in it unless `replace` has taken them over."""
        unfinished = self.path / _UNFINISHED
        self.clean()
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a run left that was killed."""
        shutil.rmtree(self.path / _UNFINISHED, ignore_errors=True)
        remove_left_behind(self.path, (*RESULT_FILES, SUMMARY_FILE))

    def replace(self, unfinished: Path, summary: Mapping[str, Any]) -> None:
        """Put new results in the place of all earlier ones; the summary comes last."""
        files = sorted(path.name for path in unfinished.iterdir())
        (self.path / SUMMARY_FILE).unlink(missing_ok=True)
        for name in RESULT_FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in files:
            (unfinished / name).replace(self.path / name)
        self.note(summary | {"files": files})

    def fail(self, summary: Mapping[str, Any]) -> None:
        """Say why there are no new results; those of an earlier run stay, to be kept when all is as it was then."""
        finished = self.finished
        self.note(summary | ({"earlier": finished} if finished else {}))

    def note(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / SUMMARY_FILE, summary, indent=2, ensure_ascii=False)
