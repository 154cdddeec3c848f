"""What a recipe says about the data and the optimization, beside the values that libraries define."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from classquery.data.names import Backend, DatasetName


_PARTS = ("flip_probability", "saturation_jitter", "value_jitter")
_OPTIONAL_PARTS = ("score_threshold", "actor_threshold")
# No video has more frames in a second, and each is a keyframe once.
_MAX_KEYFRAME_RATE = 1000


@dataclass
class DataArguments:
    """What the clips are and how they are prepared."""

    _argument_group_name = "data"

    dataset: DatasetName = field(
        default="ava",
        metadata={"help": "Layout of the data; that of `demo` is AVA's. Demo sets are made on the spot."},
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with annotations and videos. A demo set is written there, or beside the output."},
    )
    fold: int = field(default=0, metadata={"help": "Which of the three official splits of JHMDB-21: 0, 1 or 2."})
    tiling: Literal["complete", "released"] = field(
        default="complete",
        metadata={
            "help": "How videos with tubes are divided into clips. `released`: as for the published numbers on "
            "UCF101-24, where half a clip is never seen of videos that are whole clips long."
        },
    )
    supervised_frames: int | None = field(
        default=None,
        metadata={
            "help": "Where every frame is detected in: in how many frames of a clip training detects, drawn anew in "
            "each epoch. Neighbours look alike: the time is better spent on other clips."
        },
    )
    video_map_protocol: Literal["standard", "classquery_ucf", "classquery_jhmdb"] = field(
        default="standard", metadata={"help": "How tubes are linked and counted, see `classquery.data.metrics`."}
    )
    movie_start_seconds: float = field(
        default=900.0,
        metadata={"help": "AVA: what the annotations call the start of the movies; 0 for those that are not cut."},
    )
    timestamp_offset: float = field(
        default=0.0, metadata={"help": "Custom data: what the annotations call the start of the videos, in seconds."}
    )
    box_format: str = field(
        default="normalized",
        metadata={"help": "Custom data: normalized, pixel, or 3840x2160 for pixels of frames of this size."},
    )
    frames_fps: float = field(
        default=30.0, metadata={"help": "Frames per second of videos that are folders of frames (AVA, custom data)."}
    )
    validation_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Custom data without a validation file: part of each class, whose videos are validation; kept in "
            "validation_split.json."
        },
    )
    split_seed: int = field(
        default=0, metadata={"help": "Of the choice of the videos of --validation_fraction, whatever --seed is."}
    )
    novel_classes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Classes that training does not see and evaluation reports by themselves: names, a file, "
            "jhmdb_1 to jhmdb_4, or seed:0:75 for all but 75 percent of them."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Stream the annotations, each worker a part, instead of looking each up at random."},
    )
    video_backend: Backend = field(
        default="auto",
        metadata={
            "help": "What decodes videos: `auto` is the faster one of those that are exact for a file, `decord` "
            "refuses files that it would read wrongly."
        },
    )
    on_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What training does about a video that cannot be read: stop, or skip it, count it and say so. "
            "Evaluation always stops."
        },
    )
    resize_shortest_edge: int | None = field(
        default=288,
        metadata={
            "help": "Short side in pixels of training clips before the random crop to the processor's size; an eighth "
            "more than that if none is given."
        },
    )
    max_resize_shortest_edge: int | None = field(
        default=None, metadata={"help": "If given, the short side is drawn between --resize_shortest_edge and this."}
    )
    flip_probability: float = field(
        default=0.5,
        metadata={"help": "Probability of mirroring a training clip; 0 where labels tell left from right."},
    )
    flip_pairs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pairs of classes that mirroring turns into each other: 'kite on the left:kite on the right'."
        },
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
    color_noise: float = field(
        default=0.0, metadata={"help": "Deviation of a random shift of all colours along their principal axes."}
    )
    keyframes_per_second: float | None = field(
        default=None,
        metadata={"help": "How often to detect in a whole video; by default 1, or every frame if the model does so."},
    )
    score_threshold: float | None = field(
        default=None,
        metadata={"help": "Lowest score of an action to report in a video; saved with a model, whose value is used."},
    )
    actor_threshold: float | None = field(
        default=None,
        metadata={"help": "Lowest confidence of an actor to report; saved with a model, whose value is used."},
    )

    def __post_init__(self) -> None:
        require_argument(self, "fold", self.fold in (0, 1, 2), "0, 1 or 2")
        shortest = self.resize_shortest_edge
        require_argument(self, "resize_shortest_edge", shortest is None or shortest >= 1, "at least 1")
        some = self.supervised_frames
        require_argument(self, "supervised_frames", some is None or some >= 1, "at least 1")
        if self.max_resize_shortest_edge is not None:
            is_range = shortest is not None and self.max_resize_shortest_edge >= shortest
            require_argument(self, "max_resize_shortest_edge", is_range, f"at least --resize_shortest_edge {shortest}")
        is_part = 0 <= self.validation_fraction < 1
        require_argument(self, "validation_fraction", is_part, "at least 0 and below 1")
        require_argument(self, "split_seed", self.split_seed >= 0, "at least 0")
        for name in _PARTS:
            require_argument(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in _OPTIONAL_PARTS:
            value = getattr(self, name)
            require_argument(self, name, value is None or 0 <= value <= 1, "between 0 and 1")
        require_argument(self, "hue_jitter", 0 <= self.hue_jitter <= 180, "between 0 and 180")
        for name in ("movie_start_seconds", "color_noise"):
            require_argument(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        rate = self.keyframes_per_second
        expected = f"more than 0 and at most {_MAX_KEYFRAME_RATE}"
        require_argument(self, "keyframes_per_second", rate is None or 0 < rate <= _MAX_KEYFRAME_RATE, expected)
        require_argument(self, "frames_fps", 0 < self.frames_fps < math.inf, "more than 0")
        require_argument(self, "timestamp_offset", math.isfinite(self.timestamp_offset), "a finite number")


@dataclass
class OptimizationArguments:
    """How parameters are updated, where TrainingArguments has no word for it."""

    _argument_group_name = "optimization"

    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Clips per update over all processes: sets --gradient_accumulation_steps. A published learning "
            "rate belongs to the published batch size."
        },
    )
    matrix_optimizer: Literal["same", "muon"] = field(
        default="same",
        metadata={
            "help": "What updates the matrices of linear layers: what updates all else (--optim), or Muon, which from "
            "scratch needs fewer steps."
        },
    )
    matrix_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of --matrix_optimizer muon, by default --learning_rate."}
    )
    learning_rate_width: int | None = field(
        default=None,
        metadata={
            "help": "The width of a network (d_model) that --learning_rate belongs to: one that is narrower learns so "
            "many times faster, one that is wider slower."
        },
    )
    backbone_learning_rate_factor: float = field(
        default=1.0, metadata={"help": "Learning rate of the backbone as part of --learning_rate."}
    )
    class_learning_rate_factor: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of the queries and readouts of classes as multiple of --learning_rate: classes "
            "that are new to a trained detector have further to go than all else."
        },
    )
    pyramid_scales_with_backbone: bool = field(
        default=False,
        metadata={
            "help": "Whether the scales of a ViT's feature pyramid learn at the rate of the backbone, as in the "
            "published recipe, where they have names of the backbone."
        },
    )
    decay_norms_and_biases: bool = field(
        default=False,
        metadata={"help": "Whether --weight_decay applies to norms and biases, too, as in the published recipe."},
    )
    warmup_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs in which all rates rise linearly, step by step, from --warmup_start_learning_rate."},
    )
    warmup_start_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate of the first step, of all groups alike."}
    )
    decay_epochs: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Epochs after which the rates are multiplied with --decay_factor. With these or with "
            "--warmup_epochs, --lr_scheduler_type has no say."
        },
    )
    decay_factor: float = field(default=0.1, metadata={"help": "Factor of each decay."})
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Whether batch norms share their statistics over the GPUs of a run."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an exponential moving average of the weights with this decay, as 0.999; it is evaluated, "
            "saved as `ema` in every checkpoint, and the model that training returns and saves."
        },
    )
    loss_explosion_factor: float = field(
        default=100.0,
        metadata={"help": "A loss more than this many times the mean of the last 100 passes stops the run."},
    )

    def __post_init__(self) -> None:
        if self.total_batch_size is not None:
            require_argument(self, "total_batch_size", self.total_batch_size >= 1, "at least 1")
        rate, is_same = self.matrix_learning_rate, self.matrix_optimizer == "same"
        is_rate = rate is None or (0 < rate < math.inf and not is_same)
        require_argument(self, "matrix_learning_rate", is_rate, "more than 0, with --matrix_optimizer muon")
        if self.learning_rate_width is not None:
            require_argument(self, "learning_rate_width", self.learning_rate_width >= 1, "at least 1")
        factor = self.backbone_learning_rate_factor
        expected = "more than 0 (--freeze backbone leaves the backbone as it is)"
        require_argument(self, "backbone_learning_rate_factor", 0 < factor < math.inf, expected)
        factor = self.class_learning_rate_factor
        require_argument(self, "class_learning_rate_factor", 0 < factor < math.inf, "more than 0")
        for name in ("warmup_epochs", "warmup_start_learning_rate"):
            require_argument(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        are_epochs = all(0 <= epoch < math.inf for epoch in self.decay_epochs)
        require_argument(self, "decay_epochs", are_epochs, "numbers of at least 0")
        require_argument(self, "decay_factor", 0 < self.decay_factor <= 1, "more than 0 and at most 1")
        if self.ema_decay is not None:
            require_argument(self, "ema_decay", 0 <= self.ema_decay < 1, "at least 0 and less than 1")
        require_argument(self, "loss_explosion_factor", self.loss_explosion_factor > 1, "more than 1")


def require_argument(arguments: Any, name: str, is_met: bool, expected: str) -> None:
    """Refuse the value of an argument of the command line or of a recipe.

    Raises:
        ValueError: If the condition is not met; names the argument, what is expected and the value.
    """
    if not is_met:
        raise ValueError(f"--{name} must be {expected}, got {getattr(arguments, name)}")
