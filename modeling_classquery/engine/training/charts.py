"""The curve of a training run as a picture, which needs matplotlib."""

import os
from collections.abc import Sequence

from classquery.data.whole_files import replacing
from classquery.engine.figures import figure_class


def draw_training_curve(log_history: Sequence[dict[str, float]], path: str | os.PathLike[str]) -> None:
    """Plot frame mAP and training loss over the training steps as a PNG of 900x360 pixels.

    Args:
        log_history: `trainer.state.log_history`; evaluations hold "eval_frame_map_50", training logs "loss". A run too
            short to log its loss ends with its mean, "train_loss", which is drawn then.
        path: The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = figure_class()(figsize=(9, 3.6), dpi=100, layout="constrained")
    panels = (("eval_frame_map_50", "frame mAP at IoU 0.5"), ("loss", "training loss"))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharex=True), panels, strict=True):
        points = _points(log_history, key) or _points(log_history, f"train_{key}")
        if points:
            marker = "o" if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), color="#0072B2", linewidth=2, marker=marker)
        else:
            axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color="0.5")
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlabel("training step")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial_path:
        figure.savefig(partial_path, format="png")


def _points(log_history: Sequence[dict[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]
