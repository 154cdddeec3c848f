"""The commands that a run answers to, and what they set unless it is given; importable at once."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """A command, and what it sets unless that is given.

    Attributes:
        prog: What one types before its options.
        description: What it does, with an example.
        defaults: Values of options by name.
        takes_videos: Whether what is no option is a video.
    """

    prog: str
    description: str
    defaults: dict[str, Any] = field(default_factory=dict)
    takes_videos: bool = False


TASKS = {
    "train": Task(
        "classquery train",
        "Train a detector, save it and score the validation split.\n\n"
        "    classquery train --recipe demo --output_dir out\n"
        "    classquery train --recipe ava22_vit_b --dataset custom --data_dir data --output_dir out\n"
        "    accelerate launch -m classquery train --recipe ava22_vit_b --data_dir data --output_dir out",
        {"do_train": True, "do_eval": True},
    ),
    "eval": Task(
        "classquery eval",
        "Score a detector on the validation split of a data set.\n\n"
        "    classquery eval --model DIR_OR_NAME --recipe ava22_vit_b --data_dir data --report",
        {"do_eval": True, "output_dir": "out"},
    ),
    "detect": Task(
        "classquery detect",
        "Detect actions in videos, and write tables, JSON and pictures.\n\n"
        "    classquery detect video.mp4 --model DIR_OR_NAME\n"
        "    classquery detect videos/ 'clips/*.mp4' 0 rtsp://camera --tubes",
        {"do_predict": True, "output_dir": "out"},
        takes_videos=True,
    ),
}
SCRIPT = Task(
    "run_action_detection.py",
    "Train, evaluate and run a ClassQuery video action detector.\n\n"
    "    accelerate launch run_action_detection.py --recipe demo --output_dir out --do_train --do_eval --do_predict\n"
    "    python run_action_detection.py --do_predict --videos video.mp4 --model_name_or_path DIR --tubes",
)
