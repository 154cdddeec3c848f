"""What helps to learn: frequencies of positions, starts of boxes, and boxes with noise to recover in training."""

import math

import pytest
import torch
from host_waits import count_host_waits, on_device, put_on_device
from huggingface_hub.errors import StrictDataclassError
from utils import checkpoint_activations, tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.engine.training.collation import BatchLabels
from classquery.loss_classquery import ActionTargets, generalized_box_iou
from classquery.modeling_classquery import apart_mask, box_position_embedding, grid_boxes
from classquery.plan_classquery import encode_positions


OCTAVES = {"sine_frequencies": "octaves", "highest_sine_frequency": 8.0}
ALL_AIDS = OCTAVES | {"initial_boxes": "grid", "denoising_groups": 3}


def make_model(**values):
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(dropout=0.0, classifier_dropout=0.0, **values)).train()


def batch_of(model, num_padding=0):
    """A clip of two actors, one of them in some frames only, and one of none."""
    batch = tiny_batch(model.config)
    batch["labels"][0]["frame_mask"][:num_padding] = False
    batch["labels"][0]["valid"][1, -1:] = False
    return batch


def waves(places, width):
    """Sines and cosines of 1/2 to 8 cycles over the frame, by turns."""
    frequencies = [0.5 * 16 ** (pair / (width // 2 - 1)) for pair in range(width // 2)]
    return torch.tensor(
        [[wave(2 * math.pi * f * place) for f in frequencies for wave in (math.sin, math.cos)] for place in places]
    )


def test_octaves_encode_cells_at_their_centres():
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    mask[:, 2] = False

    in_time, in_rows, in_columns = encode_positions(mask, 2, tiny_config(**OCTAVES))

    torch.testing.assert_close(in_time[0, :, 0, 0], waves([0.25, 0.75], 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(in_rows[0, 0, :2, 0], waves([0.25, 0.75], 12), rtol=0, atol=1e-4)
    torch.testing.assert_close(in_columns[0, 0, 0], waves([0.125, 0.375, 0.625, 0.875], 12), rtol=0, atol=1e-4)


def test_octaves_encode_boxes_like_cells():
    encoded = box_position_embedding(torch.tensor([0.1, 0.3, 0.2, 0.7]), tiny_config(**OCTAVES))

    torch.testing.assert_close(encoded, waves([0.3, 0.1, 0.2, 0.7], 16).flatten(), rtol=0, atol=1e-5)


def test_boxes_start_in_a_grid():
    model = make_model(initial_boxes="grid", num_queries=5, output_frames="all")

    boxes = model.model.reference_boxes.sigmoid()
    assert boxes.shape == (4, 5, 4)
    expected = torch.tensor([[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75], [0.5, 0.75]])
    torch.testing.assert_close(boxes[..., :2], expected.expand(4, -1, -1))
    torch.testing.assert_close(boxes[..., 2:], torch.tensor([0.15, 0.35]).expand(4, 5, -1))
    assert torch.equal(grid_boxes(1), torch.tensor([[0.5, 0.5, 0.15, 0.35]]))


def test_boxes_that_are_learned_stay_as_they_were_saved(tmp_path):
    model = make_model(**ALL_AIDS)
    with torch.no_grad():
        model.model.reference_boxes += 1
    model.save_pretrained(tmp_path)

    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path)

    assert torch.equal(loaded.model.reference_boxes, model.model.reference_boxes)


def test_the_rest_sees_only_itself():
    attention = apart_mask(2, torch.zeros(1, 4, 8)).softmax(-1)

    assert attention.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_denoising_leaves_the_candidates_as_they_are(output_frames):
    plain = make_model(output_frames=output_frames)
    model = make_model(output_frames=output_frames, denoising_groups=3)
    batch = batch_of(model)

    expected, outputs = plain(**batch), model(**batch)

    # Sums over more rows are rounded in another order.
    for name in ("logits", "pred_boxes", "actor_logits", "reference_boxes"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
    added = {name: term for name, term in outputs.loss_dict.items() if "denoising" in name}
    assert added.keys() == {f"loss_denoising_{kind}{layer}" for kind in ("bbox", "giou") for layer in ("", "_0")}
    weights = {"loss_denoising_bbox": 5, "loss_denoising_giou": 2}
    total = sum(weights[name.removesuffix("_0")] * term for name, term in added.items())
    torch.testing.assert_close(outputs.loss, expected.loss + total, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.eval()(**batch).loss, plain.eval()(**batch).loss)


@pytest.mark.parametrize("num_padding", [0, 1])
def test_denoising_supervises_the_boxes_of_real_actors(num_padding):
    """The box head starts at zero, so what is recovered is what was given."""
    model = make_model(output_frames="all", denoising_groups=2)
    batch = batch_of(model, num_padding)
    torch.manual_seed(1)
    noised = ActionTargets(batch["labels"]).noised_boxes(model.config, torch.device("cpu"))
    noised = noised.view(2, 4, 2, 2, 4)

    torch.manual_seed(1)
    terms = model(**batch).loss_dict

    label = batch["labels"][0]
    pairs = [
        (noised[0, frame, group, actor], label["boxes"][actor, frame])
        for group in range(2)
        for actor in range(2)
        for frame in range(num_padding, 4)
        if label["valid"][actor, frame]
    ]
    distance = sum((given - true).abs().sum() for given, true in pairs) / len(pairs)
    overlap = sum(generalized_box_iou(given, true) for given, true in pairs) / len(pairs)
    for layer in ("", "_0"):
        torch.testing.assert_close(terms["loss_denoising_bbox" + layer], distance, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["loss_denoising_giou" + layer], 1 - overlap, rtol=1e-4, atol=1e-6)


def test_noise_has_its_size():
    config = tiny_config(denoising_groups=500, denoising_noise=0.5)
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    label = {
        "boxes": box[None, None],
        "class_labels": torch.zeros(1, 1, 5),
        "valid": torch.ones(1, 1, dtype=torch.bool),
        "frame_mask": torch.ones(1, dtype=torch.bool),
    }

    noised = ActionTargets([label]).noised_boxes(config, torch.device("cpu"))[0]

    assert noised.shape == (500, 4)
    moved, scaled = (noised[:, :2] - box[:2]) / box[2:], noised[:, 2:] / box[2:] - 1
    for noise in (moved, scaled):
        assert 0.48 < noise.abs().max() <= 0.5 + 1e-5
        assert noise.mean().abs() < 0.05


def test_every_parameter_learns_and_a_batch_without_actors_is_none_that_fails():
    model = make_model(**ALL_AIDS)
    batch = batch_of(model)

    model(**batch).loss.backward()

    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    batch["labels"] = [batch["labels"][1]] * 2
    outputs = model(**batch)
    assert outputs.loss.isfinite()
    assert outputs.loss_dict["loss_denoising_bbox"] == 0


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = make_model(**ALL_AIDS)
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(2)
        model(**batch_of(model)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])

    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_denoising_does_not_wait_for_the_device():
    waits_of = []
    for groups in (0, 3):
        model = make_model(output_frames="all", padding="masked", denoising_groups=groups)
        put_on_device(model)
        batch = batch_of(model)
        labels, inputs = BatchLabels(batch.pop("labels")), on_device({"pixel_values": batch["pixel_values"]})
        for _ in range(2):
            with count_host_waits() as waits:
                model(**inputs, labels=labels).loss.backward()
        waits_of.append([wait for wait in waits if "non_blocking=True" not in wait.code])

    assert len(waits_of[0]) == len(waits_of[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"denoising_groups": -1}, "`denoising_groups` must be at least 0, got -1"),
        ({"denoising_noise": 1.5}, "`denoising_noise` must be between 0 and 1, got 1.5"),
        ({"highest_sine_frequency": 0.5}, "`highest_sine_frequency` must be more than 0.5, got 0.5"),
    ],
)
def test_values_out_of_range_raise(values, message):
    with pytest.raises(StrictDataclassError) as error:
        tiny_config(**values)
    assert message in str(error.value.__cause__)
