"""What a recipe says about the data."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DataArguments:
    """What the clips are and how they are prepared."""

    dataset: Literal["ava", "ucf101_24", "jhmdb_21", "demo"] = field(
        default="ava", metadata={"help": "Layout of the data; `demo` is made on the spot, in AVA's."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with `annotations/` and `videos/`. The demo set is written there, or beside the output."
        },
    )
    fold: int = field(default=0, metadata={"help": "Which of the three official splits of JHMDB-21: 0, 1 or 2."})
    movie_start_seconds: float = field(
        default=900.0,
        metadata={"help": "What the annotations call the start of the video files; 0 for movies that are not cut."},
    )
    resize_shortest_edge: int = field(
        default=288,
        metadata={"help": "Short side in pixels of training clips before the random crop to the processor's size."},
    )
    flip_probability: float = field(
        default=0.5,
        metadata={"help": "Probability of mirroring a training clip; 0 where labels tell left from right."},
    )
    hue_jitter: float = field(
        default=0.0, metadata={"help": "Largest random turn of the hue of a training clip, in degrees."}
    )
    saturation_jitter: float = field(
        default=0.0, metadata={"help": "Largest random change of the saturation of a training clip, as part of full."}
    )
    value_jitter: float = field(
        default=0.0, metadata={"help": "Largest random change of the brightness of a training clip, as part of full."}
    )
    keyframes_per_second: float = field(
        default=1.0, metadata={"help": "How often to detect in a whole video, for --do_predict."}
    )
    score_threshold: float = field(
        default=0.3, metadata={"help": "Lowest score of an action that --do_predict reports."}
    )
    actor_threshold: float = field(
        default=0.5, metadata={"help": "Lowest confidence of an actor that --do_predict reports."}
    )
