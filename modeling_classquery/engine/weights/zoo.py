"""What is published where, and the folder that keeps it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import cached_assets_path


ZOO_FILE = Path(__file__).with_name("zoo.json")
LICENCE = "CC BY-NC 4.0"
ANNOTATIONS_LINK = "https://drive.google.com/drive/folders/1irXt04gtqe7jmQ1V79dRB_zRjKVi4gb0"

Kind = Literal["detector", "transformer", "backbone"]


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published, as a file or in an archive.

    Attributes:
        name: What they are called here.
        kind: A whole detector; a detector of stage one, of which encoder and decoder are taken; or a backbone.
        data: What they were trained on.
        network: Whose they are.
        file: Name of the file here; several weights may come in one.
        bounds: Smallest and largest size of the file in megabytes: the weights in half precision without anything
            else, and in single precision with the state of an optimizer and room to spare.
        recipe: What the model is; empty for a backbone.
        frame_map, video_map: Published frame mAP and video mAP at IoU 0.5, in percent.
        drive, url: Its id on Google Drive, or its address.
        megabytes: Of the weights in single precision; the published files were not reached to measure them.
        member: Pattern of the file in an archive, for its whole name without folders, in lower case; empty where the
            file is no archive.
    """

    name: str
    kind: Kind
    data: str
    network: str
    file: str
    bounds: tuple[float, float]
    recipe: str = ""
    frame_map: float | None = None
    video_map: float | None = None
    drive: str | None = None
    url: str | None = None
    megabytes: float | None = None
    member: str = ""

    @property
    def link(self) -> str:
        """Where a browser finds the file."""
        return self.url or f"https://drive.google.com/file/d/{self.drive}/view"

    @property
    def path(self) -> Path:
        """Where the file is kept."""
        return cache_folder() / "files" / self.file

    @property
    def folder(self) -> Path:
        """Where a converted detector is kept."""
        return cache_folder() / "detectors" / self.name


def load_zoo() -> dict[str, PublishedWeights]:
    """All that is published, by name."""
    content = json.loads(ZOO_FILE.read_text(encoding="utf-8"))
    return {
        name: PublishedWeights(name, **values | {"bounds": tuple(values["bounds"])})
        for name, values in content.items()
    }


def cache_folder() -> Path:
    """Folder of published weights in the cache of Hugging Face (`HF_ASSETS_CACHE`, or `assets` in `HF_HOME`)."""
    return cached_assets_path("classquery", "weights", "published")
