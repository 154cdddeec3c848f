"""Partial annotations: actors whose actions nobody labelled, regions where nobody looked, classes not looked for."""

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from partial_annotations import partial_rows
from torchvision.ops import box_convert

from classquery import ClassQueryConfig, ClassQueryVideoProcessor
from classquery.data.annotations.parquet import load_parquet, save_action_dataset
from classquery.data.annotations.schema import to_dataset
from classquery.data.clips import ClipCollator, KeyframeClips, TubeClips, keyframes_of_tubes
from classquery.data.transforms import ClipTransform
from classquery.loss_classquery import ActionTargets, action_detection_loss, match_actors


CONFIG = ClassQueryConfig(num_labels=5, num_queries=6, label_smoothing=0.1)
NUM_FRAMES = 4


def random_predictions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, NUM_FRAMES, CONFIG.num_queries)
    predictions = {
        "logits": torch.randn(*shape, CONFIG.num_labels, generator=generator),
        "pred_boxes": torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2,
        "actor_logits": torch.randn(*shape, 3, generator=generator),
    }
    return {name: states.requires_grad_() for name, states in predictions.items()}


def complete_labels(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "boxes": torch.rand(n, NUM_FRAMES, 4, generator=generator) * 0.4 + 0.3,
            "class_labels": (torch.rand(n, NUM_FRAMES, CONFIG.num_labels, generator=generator) > 0.5).float(),
            "valid": torch.ones(n, NUM_FRAMES, dtype=torch.bool),
            "frame_mask": torch.arange(NUM_FRAMES) < NUM_FRAMES - index,
        }
        for index, n in enumerate((3, 2))
    ]


def loss_and_gradients(labels, config=CONFIG):
    predictions = random_predictions()
    loss, terms = action_detection_loss([predictions], labels, config)
    loss.backward()
    return terms, {name: states.grad for name, states in predictions.items()}


def matched_pairs(labels):
    """Clip, frame, candidate and actor of each pair."""
    pairs = []
    for clip, label in enumerate(labels):
        layer = {name: states[clip].detach() for name, states in random_predictions().items()}
        valid = (label["valid"] & label["frame_mask"]).T
        frames, candidates, actors = match_actors(
            layer, {"boxes": label["boxes"].transpose(0, 1), "valid": valid}, CONFIG
        )
        pairs += [(clip, *pair) for pair in zip(frames.tolist(), candidates.tolist(), actors.tolist(), strict=True)]
    return pairs


@pytest.mark.parametrize("score_with_actor", [False, True])
def test_annotations_that_leave_nothing_open_are_complete_bit_for_bit(score_with_actor):
    config = ClassQueryConfig(num_labels=5, num_queries=6, score_with_actor=score_with_actor)
    labels = complete_labels()
    expected, expected_gradients = loss_and_gradients(labels, config)
    for label in labels:
        label["labelled"] = torch.ones_like(label["valid"])
        label["annotated_labels"] = torch.ones(5, dtype=torch.bool)
        label["ignored_boxes"] = torch.zeros(2, NUM_FRAMES, 4)

    terms, gradients = loss_and_gradients(labels, config)

    assert ActionTargets(complete_labels()).partial == {}
    assert all(torch.equal(terms[name], expected[name]) for name in expected)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


def test_actor_without_labels_is_found_but_learns_no_class():
    labels = complete_labels()
    expected, expected_gradients = loss_and_gradients(labels)
    labels[0]["labelled"] = torch.ones(3, NUM_FRAMES, dtype=torch.bool)
    labels[0]["labelled"][1, 1:] = False
    labels[0]["class_labels"][1, 1:] = 0

    terms, gradients = loss_and_gradients(labels)

    for name in ("loss_bbox", "loss_giou", "loss_actor"):
        assert torch.equal(terms[name], expected[name])
    unlabelled = torch.zeros(2, NUM_FRAMES, CONFIG.num_queries, dtype=torch.bool)
    for clip, frame, candidate, actor in matched_pairs(labels):
        unlabelled[clip, frame, candidate] = clip == 0 and actor == 1 and frame >= 1
    assert unlabelled.sum() == NUM_FRAMES - 1
    assert (gradients["logits"][unlabelled] == 0).all()
    assert torch.equal(gradients["logits"][~unlabelled], expected_gradients["logits"][~unlabelled])


def test_classes_that_nobody_looked_for_are_neither_true_nor_false():
    labels = complete_labels()
    _, expected_gradients = loss_and_gradients(labels)
    labels[1]["annotated_labels"] = torch.tensor([True, False, True, True, False])
    labels[1]["class_labels"][..., [1, 4]] = 0

    _, gradients = loss_and_gradients(labels)

    assert (gradients["logits"][1, ..., [1, 4]] == 0).all()
    assert torch.equal(gradients["logits"][1, ..., [0, 2, 3]], expected_gradients["logits"][1, ..., [0, 2, 3]])
    assert torch.equal(gradients["logits"][0], expected_gradients["logits"][0])
    assert torch.equal(gradients["actor_logits"], expected_gradients["actor_logits"])


def test_candidates_without_actor_in_an_ignored_region_are_no_background():
    labels = complete_labels()
    expected, expected_gradients = loss_and_gradients(labels)
    region = torch.tensor([0.25, 0.35, 0.5, 0.7])
    labels[0]["ignored_boxes"] = torch.stack((region.repeat(NUM_FRAMES, 1), torch.zeros(NUM_FRAMES, 4)))
    labels[0]["ignored_boxes"][0, 2] = 0

    terms, gradients = loss_and_gradients(labels)

    # How much of a candidate is inside, counted on a grid.
    grid = torch.linspace(0, 1, 4001)
    boxes = box_convert(random_predictions()["pred_boxes"].detach()[0], "cxcywh", "xyxy")
    in_box = [(grid >= boxes[..., low, None]) & (grid <= boxes[..., low + 2, None]) for low in (0, 1)]
    in_region = (grid >= 0) & (grid <= 0.5), (grid >= 0) & (grid <= 0.7)
    inside = [(box & region).sum(-1) / box.sum(-1) for box, region in zip(in_box, in_region, strict=True)]
    share = inside[0] * inside[1]
    assert ((share - 0.5).abs() > 0.005).all()
    ignored = torch.zeros(2, NUM_FRAMES, CONFIG.num_queries, dtype=torch.bool)
    ignored[0] = share > 0.5
    ignored[0, 2] = False
    for clip, frame, candidate, _ in matched_pairs(labels):
        ignored[clip, frame, candidate] = False
    assert 3 < ignored.sum() < 3 * (CONFIG.num_queries - 3)
    for name in ("logits", "actor_logits"):
        assert (gradients[name][ignored] == 0).all()
        assert torch.equal(gradients[name][~ignored], expected_gradients[name][~ignored])
    for name in ("loss_bbox", "loss_giou"):
        assert torch.equal(terms[name], expected[name])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labelled", torch.ones(2, NUM_FRAMES), r"'labelled'\]` must have shape \(3, 4\), got \(2, 4\)"),
        ("annotated_labels", torch.ones(4), r"'annotated_labels'\]` must have shape \(5,\), got \(4,\)"),
        ("ignored_boxes", torch.ones(1, 4), r"'ignored_boxes'\]` must have shape \(1, 4, 4\), got \(1, 4\)"),
        ("ignored_boxes", torch.full((1, NUM_FRAMES, 4), 90.0), r"'ignored_boxes'\]` must lie in \[0, 1\]"),
    ],
)
def test_partial_labels_of_another_shape_raise(name, value, message):
    labels = complete_labels()
    labels[0][name] = value

    with pytest.raises(ValueError, match=rf"labels\[0\]\[{message}"):
        ActionTargets(labels)


# Clips


@pytest.fixture
def rows(tmp_path):
    return partial_rows(tmp_path)


def test_tubes_say_what_is_open(rows):
    first, second = (TubeClips(rows, num_labels=3, num_frames=5)[index] for index in range(2))

    assert first["labelled"].tolist() == [[True] * 5, [True, True, False, False, True]]
    assert first["valid"].tolist() == [[True] * 5, [False, False, True, True, False]]
    assert first["class_labels"].sum() == 5
    assert first["ignored_boxes"][0].any(-1).tolist() == [False, False, False, True, True]
    assert first["annotated_labels"].tolist() == second["annotated_labels"].tolist() == [True, False, True]
    assert second["labelled"].tolist() == [[False] * 5]
    assert "ignored_boxes" not in second


def test_keyframes_say_what_is_open(rows):
    keyframes = keyframes_of_tubes(rows, keyframes_per_second=10)
    clips = KeyframeClips(keyframes, num_labels=3, num_frames=2, frame_stride=1, frames_per_second=10)

    assert [clips[index].get("labelled", torch.ones(0)).flatten().tolist() for index in (0, 3, 7)] == [
        [],
        [True, False],
        [False],
    ]
    assert ["ignored_boxes" in clips[index] for index in (2, 3)] == [False, True]
    assert clips[3]["ignored_boxes"].tolist() == [[[0.0, 0.5, 0.25, 1.0]]]
    assert all(clips[index]["annotated_labels"].tolist() == [True, False, True] for index in (0, 7))


def test_regions_are_cropped_and_flipped_with_the_actors(rows):
    transform = ClipTransform(32, 32, flip_probability=1.0)

    clip = TubeClips(rows, num_labels=3, num_frames=5, transform=transform)[0]

    assert clip["boxes"][0, 3].tolist() == [0.5, 0.25, 0.875, 0.75]
    assert clip["ignored_boxes"][0, 3].tolist() == [0.75, 0.5, 1.0, 1.0]
    # Where there is none, there is none in the mirror either.
    assert (clip["ignored_boxes"][0, 0, 2:] <= clip["ignored_boxes"][0, 0, :2]).all()


def test_batches_reach_the_loss(rows):
    clips = TubeClips(rows, num_labels=3, num_frames=5)

    batch = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 32}))([clips[0], clips[1]])
    targets = pickle.loads(pickle.dumps(ActionTargets(batch["labels"])))

    assert {name: tuple(tensor.shape) for name, tensor in targets.partial.items()} == {
        "labelled": (10, 2),
        "annotated_labels": (10, 3),
        "ignored_boxes": (10, 1, 4),
    }
    assert targets.partial["ignored_boxes"][3, 0].tolist() == [0.125, 0.75, 0.25, 0.5]
    assert not targets.partial["ignored_boxes"][:3].any()
    np.testing.assert_array_equal(targets.partial["labelled"][5:, 0], np.zeros(5))


def test_parquet_keeps_what_is_open(rows, tmp_path):
    save_action_dataset(rows, dict(enumerate("abc")), tmp_path, "train")

    assert load_parquet(tmp_path, "train")[0] == rows[0]


def test_benchmark_leaves_out_every_second_actor(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("partial_labels")
    box, frames = [0.0, 0.0, 0.5, 0.5], [0]
    tubes = [{"track_id": index, "labels": [index % 3], "frames": frames, "boxes": [box]} for index in range(100)]
    rows = to_dataset([{"clip_id": "a", "tubes": tubes}, {"clip_id": "b", "tubes": tubes[:1]}])

    arms = {arm: benchmark.partly(rows, arm, seed=1) for arm in benchmark.ARMS}

    assert arms["all boxed"][:] == rows[:]
    kept = [tube["track_id"] for tube in arms["half boxed"][0]["tubes"]]
    assert 30 < len(kept) < 70
    with_regions = arms["half boxed, regions"][0]
    assert [tube["track_id"] for tube in with_regions["tubes"]] == kept
    assert len(with_regions["ignored"]) == 100 - len(kept)
    labelled = [tube["track_id"] for tube in arms["half labelled"][0]["tubes"] if tube["labels"] is not None]
    assert labelled == kept
    assert len(arms["half labelled"][0]["tubes"]) == 100
