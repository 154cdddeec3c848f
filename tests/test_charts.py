"""Charts: the right rows and curves, and a clear message where matplotlib is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classquery.engine.detection.people import ActionSegment, Person
from classquery.engine.detection.timeline import draw_timeline
from classquery.engine.training.charts import draw_training_curve


pytest.importorskip("matplotlib")


def person(person_id: int, *labels: str) -> Person:
    segments = [ActionSegment(label, 1.0 + index, 3.0 + index, 0.8) for index, label in enumerate(labels)]
    return Person(person_id, np.array([30]), np.array([1.0]), [], segments)


def has_color(picture: Image.Image, start: float, end: float) -> np.ndarray:
    """Whether each of some columns, as parts of the width, shows anything but grey."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    columns = np.linspace(start, end, 9) * (picture.width - 1)
    return (np.ptp(pixels[:, columns.astype(int)], axis=-1) > 40).any(axis=0)


@pytest.mark.parametrize("num_people", [0, 1, 9])
def test_timeline_grows_with_the_number_of_people(num_people, tmp_path):
    labels = ("stand", "talk to (e.g., self, a person, a group)")

    draw_timeline([person(number, *labels) for number in range(1, num_people + 1)], tmp_path / "timeline.png")

    picture = Image.open(tmp_path / "timeline.png")
    assert picture.width == 1350
    assert picture.height == pytest.approx(150 * (0.9 + 0.24 * max(3, 2 * num_people)), abs=2)


def test_bars_are_where_the_actions_are(tmp_path):
    draw_timeline([person(1, "stand")], tmp_path / "timeline.png", duration_seconds=10)

    picture = Image.open(tmp_path / "timeline.png")
    assert has_color(picture, 0.30, 0.35).all()
    assert not has_color(picture, 0.5, 1.0).any()


def test_long_lists_say_what_is_left_out(tmp_path):
    draw_timeline([person(number, "stand") for number in range(1, 70)], tmp_path / "timeline.png")

    assert Image.open(tmp_path / "timeline.png").height < 2400


def test_missing_matplotlib_is_named_for_timelines(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ImportError, match="pip install classquery"):
        draw_timeline([], tmp_path / "timeline.png")


# Training curve


@pytest.mark.parametrize("with_evaluation", [True, False])
def test_training_curve_is_a_picture(with_evaluation, tmp_path):
    pytest.importorskip("matplotlib")
    log_history = [{"loss": 10 / step, "step": step} for step in range(1, 20)]
    if with_evaluation:
        log_history += [{"eval_frame_map_50": 0.4, "step": 10}, {"eval_frame_map_50": 0.6, "step": 20}]

    draw_training_curve([*log_history, {"train_runtime": 3.0, "step": 20}], tmp_path / "curve.png")

    assert Image.open(tmp_path / "curve.png").size == (900, 360)


def test_training_curve_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ImportError, match="pip install classquery"):
        draw_training_curve([], tmp_path / "curve.png")


def test_run_too_short_for_its_log_has_a_curve_all_the_same(tmp_path):
    draw_training_curve([{"step": 2, "train_loss": 1.5}], tmp_path / "curve.png")

    picture = Image.open(tmp_path / "curve.png")
    assert has_color(picture, 0.55, 0.98).any()
    assert not has_color(picture, 0.08, 0.48).any()  # Nothing was evaluated, and it says so.
