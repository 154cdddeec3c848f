"""Thresholds of best F1, found by trying all."""

import math

import numpy as np
import pytest
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration.recipes import load_recipe
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.run.models import load_model
from classquery.engine.training.thresholds import ENOUGH_BOXES, fit_thresholds


LABELS = {0: "stand", 1: "walk", 2: "fly"}
BOX, OTHER = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)


def make_record(clip_id, stand, walk, is_true, actor_score=0.9):
    """One candidate on an actor who stands or walks as given; nobody flies."""
    return {
        "clip_id": clip_id,
        "video": clip_id,
        "frame_numbers": np.zeros(1, int),
        "boxes": np.array([[BOX, OTHER]], np.float32),
        "scores": np.array([[[stand, walk, 0.5], [0.99, 0.99, 0.99]]], np.float32),
        "actor_scores": np.array([[actor_score, 0.1]], np.float32),
        "true_boxes": np.array([[BOX]], np.float32),
        "true_labels": np.array([[[*is_true, 0]]], np.float32),
        "true_valid": np.ones((1, 1), bool),
    }


@pytest.fixture(scope="module")
def records():
    """Everybody stands or not by chance, and is more likely to be thought to; few walk."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(60):
        stands, walks = generator.random() < 0.6, index < 3
        scores = (0.3 * generator.random() + 0.4 * truth + 0.2 * generator.random() for truth in (stands, walks))
        made.append(make_record(str(index), *scores, (stands, walks)))
    return made


def f1_at(threshold, scores, truths):
    reported = scores >= threshold
    right = (reported & truths).sum()
    return 2 * right / (reported.sum() + truths.sum())


def columns(records, label):
    scores = np.array([record["scores"][0, 0, label] for record in records])
    return scores, np.array([record["true_labels"][0, 0, label] == 1 for record in records])


def test_no_other_threshold_has_a_better_f1(records):
    fitted = fit_thresholds(records, LABELS, actor_threshold=0.5)

    scores, truths = columns(records, 0)
    best = max(f1_at(threshold, scores, truths) for threshold in np.linspace(0, 1, 2001))
    assert f1_at(fitted["stand"].threshold, scores, truths) == pytest.approx(best)
    reported = scores >= fitted["stand"].threshold
    assert fitted["stand"].precision == pytest.approx((reported & truths).sum() / reported.sum())
    assert fitted["stand"].recall == pytest.approx((reported & truths).sum() / truths.sum())


def test_rare_class_takes_at_least_the_threshold_of_all(records):
    fitted = fit_thresholds(records, LABELS, actor_threshold=0.5)

    (stand, stands), (walk, walks) = columns(records, 0), columns(records, 1)
    assert walks.sum() < ENOUGH_BOXES < stands.sum()
    all_scores, all_truths = np.concatenate((stand, walk)), np.concatenate((stands, walks))
    best = max(f1_at(threshold, all_scores, all_truths) for threshold in np.linspace(0, 1, 2001))
    # Nobody flies, so that is the threshold of all.
    together = fitted["fly"].threshold
    assert f1_at(together, all_scores, all_truths) == pytest.approx(best)
    assert fitted["walk"].threshold >= together
    assert math.isnan(fitted["fly"].recall)


def test_candidates_that_are_no_actors_are_not_reported(records):
    with_ghosts = [*records, *(make_record(f"ghost {i}", 0.95, 0.95, (True, False), 0.2) for i in range(30))]

    expected, found = (fit_thresholds(r, LABELS, actor_threshold=0.5)["stand"] for r in (records, with_ghosts))

    assert found.precision == pytest.approx(expected.precision, abs=0.1)
    assert found.recall < expected.recall


def test_class_that_is_never_right_is_not_reported():
    records = [make_record(str(i), 0.8, 0.9 if i % 2 else 0.1, (True, False)) for i in range(ENOUGH_BOXES)]
    for record in records:
        record["true_labels"][0, 0, 1] = 1
        record["boxes"][0, 0] = OTHER

    fitted = fit_thresholds(records, LABELS, actor_threshold=0.5)

    assert fitted["walk"].threshold == 1
    assert math.isnan(fitted["walk"].precision)
    assert fitted["walk"].recall == 0


def test_thresholds_follow_classes_that_the_data_spell_otherwise(tmp_path):
    config = tiny_config(num_labels=3, id2label={0: "Stand up", 1: "walk", 2: "fly"})
    ClassQueryForVideoActionDetection(config).save_pretrained(tmp_path)
    ClassQueryVideoProcessor(class_thresholds={"Stand up": 0.7, "fly": 0.6}).save_pretrained(tmp_path)

    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    model, processor = load_model(arguments, load_recipe("demo"), {0: "stand_up", 1: "walk", 2: "fly"})

    assert model.config.id2label[0] == "stand_up"
    assert processor.class_thresholds == {"stand_up": 0.7, "fly": 0.6}
