"""What to detect in and what to write, as options of the command line; importable at once."""

from dataclasses import dataclass, field

from classquery.configuration.arguments import require_argument


@dataclass
class PredictionArguments:
    """What to detect in, and what to write besides `detections.json` and `detections.csv`."""

    _argument_group_name = "detection in videos"

    videos: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to detect actions in: files, folders, patterns, numbers of cameras or URLs of streams; by "
            "default a held-out demo movie."
        },
    )
    tubes: bool = field(
        default=False,
        metadata={
            "help": "Number people through the video; write and draw timelines, and files for AVA, CVAT, Label Studio "
            "and VIA."
        },
    )
    people_only: bool = field(
        default=False,
        metadata={
            "help": "With --tubes: leave out what people do from the files to be corrected, for classes that no model "
            "knows yet."
        },
    )
    save_video: bool = field(
        default=False,
        metadata={"help": "Draw the detections into copies of the videos. Of a single one, this is always done."},
    )
    attention: str | None = field(
        default=None, metadata={"help": "Name of an action whose attention is laid over the annotated videos."}
    )
    attention_person: int | None = field(
        default=None, metadata={"help": "With --tubes: number of the person whose attention alone to show."}
    )
    show_classes: list[str] = field(
        default_factory=list, metadata={"help": "Names of the actions to report; by default all."}
    )
    show: bool = field(default=False, metadata={"help": "Open the annotated videos in a window, where there is one."})
    top_k: int | None = field(default=None, metadata={"help": "Report so many actions of an actor, at most."})

    def __post_init__(self) -> None:
        require_argument(self, "top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        if self.people_only and not self.tubes:
            raise ValueError("--people_only needs --tubes, which numbers people")
        if self.people_only and (self.show_classes or self.top_k):
            raise ValueError("--people_only leaves out all actions: give it without --show_classes and --top_k")
        if self.attention_person is not None and not (self.tubes and self.attention):
            raise ValueError("--attention_person needs --attention and --tubes, which numbers people")

    @property
    def labels(self) -> list[str]:
        """All classes that are named."""
        return [*self.show_classes, *([self.attention] if self.attention else [])]
