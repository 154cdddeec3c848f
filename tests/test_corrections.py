"""The named corrections of the released network: each does what it says, and a clip does not see its batch."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from reference_forms import interleave_heads
from utils import tiny_batch, tiny_config

from classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryForVideoActionDetection, ClassQueryModel
from classquery.configuration_classquery import CORRECTED
from classquery.modeling_classquery import (
    ClassQueryDeformableAttention,
)
from classquery.plan_classquery import ClipPlan, encode_positions, join_encodings


VIT = tiny_config().backbone_config.to_dict() | {"position_table": "factorized"}
CSN = {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}


def randomized(config):
    """A detector in evaluation mode whose outputs depend on everything: no weight is zero."""
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_of(config):
    return {key: tensor for key, tensor in tiny_batch(config).items() if key != "labels"}


def test_all_corrections_are_made_together():
    config = ClassQueryConfig.corrected(num_labels=7, class_readout="released")

    assert {name: getattr(config, name) for name in CORRECTED} == CORRECTED | {"class_readout": "released"}
    assert config.backbone_config.position_table == "factorized"
    assert config.num_labels == 7
    csn = ClassQueryConfig.corrected(backbone_config=CSN).backbone_config
    assert isinstance(csn, ClassQueryCSNConfig)
    assert csn.depths == [1, 1, 1, 1]


def test_default_configuration_makes_no_correction():
    config = ClassQueryConfig()

    assert {getattr(config, name) for name in CORRECTED} == {"released"}
    assert config.backbone_config.position_table == "released"


@pytest.mark.parametrize("name", [name for name in CORRECTED if name != "box_modulation"])
def test_each_corrected_value_changes_the_outputs(name):
    released = randomized(tiny_config())
    corrected = ClassQueryForVideoActionDetection(tiny_config(**{name: CORRECTED[name]})).eval()
    # A different value may add parameters, but never renames any.
    _, unexpected = corrected.load_state_dict(released.state_dict(), strict=False)
    assert not unexpected

    with torch.no_grad():
        inputs = inputs_of(released.config)
        difference = released(**inputs).logits - corrected(**inputs).logits

    assert difference.abs().max() > 1e-5


@pytest.mark.parametrize("backbone", [VIT, CSN], ids=["vit", "csn"])
@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_clip_gives_the_same_detections_alone_and_in_a_padded_batch(backbone, output_frames):
    # The small clip also ends within a patch, and its coarsest level is not half of the one before.
    sizes = [(72, 96), (56, 45)]
    config = tiny_config(**CORRECTED, backbone_config=backbone, num_frames=8, output_frames=output_frames)
    model = randomized(config)
    clips = [torch.randn(1, 8, 3, *size) for size in sizes]
    batch, mask = torch.zeros(2, 8, 3, 72, 96), torch.zeros(2, 72, 96, dtype=torch.long)
    for index, (clip, (height, width)) in enumerate(zip(clips, sizes, strict=True)):
        batch[index, ..., :height, :width] = clip
        mask[index, :height, :width] = 1

    with torch.no_grad():
        together = model(batch, mask)
        for index, clip in enumerate(clips):
            alone = model(clip)
            for name in ("logits", "pred_boxes", "actor_logits"):
                torch.testing.assert_close(together[name][index], alone[name][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", [VIT, CSN], ids=["vit", "csn"])
def test_contents_of_the_padding_do_not_matter(backbone):
    config = tiny_config(**CORRECTED, backbone_config=backbone)
    model, inputs = randomized(config), inputs_of(config)
    noise = torch.randn_like(inputs["pixel_values"]) * (1 - inputs["pixel_mask"])[:, None, None]

    with torch.no_grad():
        clean, noisy = model(**inputs), model(inputs["pixel_values"] + noise, inputs["pixel_mask"])

    torch.testing.assert_close(noisy.logits, clean.logits, rtol=0, atol=0)


def test_padding_inside_the_frame_raises():
    config = tiny_config(**CORRECTED)
    inputs = inputs_of(config)
    inputs["pixel_mask"][0, 3, 5] = 0

    with pytest.raises(ValueError, match="pad below and to the right"):
        ClassQueryForVideoActionDetection(config)(**inputs)


@pytest.mark.parametrize(("value", "finite"), [("released", False), ("clamped", True)])
def test_vanishing_boxes_do_not_overflow(value, finite):
    model = randomized(tiny_config(box_modulation=value))
    with torch.no_grad():
        # The width underflows to zero in the sigmoid.
        model.model.reference_boxes[..., 2] = -200.0

        outputs = model(**inputs_of(model.config))

    assert bool(outputs.logits.isfinite().all()) == finite


def test_clamped_modulation_leaves_boxes_of_more_than_a_percent_alone():
    released = randomized(tiny_config())
    clamped = ClassQueryForVideoActionDetection(tiny_config(box_modulation="clamped")).eval()
    clamped.load_state_dict(released.state_dict())
    inputs = inputs_of(released.config)

    with torch.no_grad():
        torch.testing.assert_close(clamped(**inputs).logits, released(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize(("axis", "step"), [(0, (0, 0, 1)), (1, (0, 1, 0)), (2, (1, 0, 0))], ids=["x", "y", "t"])
def test_geometric_offset_of_one_samples_the_next_cell_on_every_axis(axis, step):
    config = tiny_config(sampling_offset_order="geometric", num_feature_levels=2, encoder_n_points=1)
    attention = ClassQueryDeformableAttention(config)
    shapes = [(3, 4, 5), (1, 1, 1)]
    scales = ClipPlan.make(config, shapes, 4, torch.device("cpu")).offset_scales
    states = torch.randn(1, 61, 32)
    centers = [(torch.arange(size) + 0.5) / size for size in shapes[0]]
    points = torch.stack(torch.meshgrid(*centers, indexing="ij")[::-1], dim=-1).view(1, 60, 1, 3)
    points = torch.cat((points, torch.full((1, 1, 1, 3), 0.5)), dim=1).expand(-1, -1, 2, -1)
    with torch.no_grad():
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(32))
            projection.bias.zero_()
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.view(-1, 3).copy_(torch.eye(3)[axis])
        attention.attention_weights.weight.zero_()
        # All weight on the first level.
        attention.attention_weights.bias.view(-1, 2).copy_(torch.tensor([50.0, -50.0]))

        attended = attention(states, states, points, shapes, scales, None)

    level, moved = (tensor[0, :60].view(*shapes[0], 32) for tensor in (states, attended))
    t, h, w = (size - one for size, one in zip(shapes[0], step, strict=True))
    torch.testing.assert_close(moved[:t, :h, :w], level[step[0] :, step[1] :, step[2] :], rtol=0, atol=1e-5)


def test_pixel_centers_keep_constant_maps_constant_and_maps_of_the_same_size_as_they_are():
    model = ClassQueryModel(tiny_config(resampling_grid="pixel_centers", output_frames="all"))
    shapes = [(2, 6, 8), (4, 3, 4), (2, 2, 2)]
    num_cells = [math.prod(shape) for shape in shapes]
    states = torch.randn(1, sum(num_cells), 32)
    states[:, : num_cells[0]] = 3.0

    memory = model.resample(states, ClipPlan.make(model.config, shapes, 4, torch.device("cpu")))

    torch.testing.assert_close(memory[0], torch.full_like(memory[0], 3.0))
    same_size = states[:, num_cells[0] : num_cells[0] + num_cells[1]]
    torch.testing.assert_close(memory[1].flatten(0, 1), same_size[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("value", "slots"), [("released", [0, 1, 0, 1]), ("nearest", [0, 0, 1, 1])])
def test_each_frame_gets_the_position_of_its_time_slot(value, slots):
    model = ClassQueryModel(tiny_config(resampled_position=value, output_frames="all"))
    plan = ClipPlan.make(model.config, [(2, 1, 1)] * 4, 4, torch.device("cpu"))
    encodings = torch.arange(2.0).view(1, 2, 1, 1, 1)

    assert model.encodings_of_frames(encodings, plan, 1).flatten().tolist() == slots


def test_paired_sines_and_cosines_share_their_frequency():
    mask = torch.ones(1, 5, 7, dtype=torch.bool)

    parts = encode_positions(mask, 3, tiny_config(sine_frequencies="paired"))

    embedding = join_encodings(parts, (3, 5, 7))

    # Channels 8 to 19 encode the row: 12 channels, here of the third of five rows.
    angle = 3 / (5 + 1e-6) * 2 * math.pi
    expected = [f(angle / 10000 ** (2 * i / 12)) for i in range(6) for f in (math.sin, math.cos)]
    torch.testing.assert_close(embedding[0, 1, 2, 4, 8:20], torch.tensor(expected))


def test_interleaved_heads_see_their_share_of_content_and_position():
    content, position = torch.arange(6.0), -torch.arange(6.0)

    assert interleave_heads(content, position, 2).tolist() == [0, 1, 2, 0, -1, -2, 3, 4, 5, -3, -4, -5]


def test_separate_convolutions_are_three_blocks():
    layers = ClassQueryModel(tiny_config(class_convolutions="separate")).decoder.classifying_layers

    assert [len(layer.conv_blocks) for layer in layers] == [3, 3]


def test_readout_per_class_multiplies_each_feature_with_its_own_vector():
    model = randomized(tiny_config(class_readout="per_class"))
    features = torch.randn(2, 1, 3, 5, 32)

    expected = torch.einsum("bfnkc,kc->bfnk", features, model.class_readout) + model.class_readout_bias

    torch.testing.assert_close(model.classify(features), expected)


def test_factorized_table_of_another_size_is_interpolated_even_if_it_has_as_many_cells():
    backbone = ClassQueryModel(tiny_config(backbone_config=VIT)).backbone

    rows = backbone._positions((2, 2, 8)).view(2, 2, 8, 32)[..., 8:20]

    torch.testing.assert_close(rows[:, :, :1].expand_as(rows), rows, rtol=0, atol=1e-5)


def test_factorized_table_is_interpolated_in_time():
    backbone = ClassQueryModel(tiny_config(backbone_config=VIT, num_frames=8)).backbone
    table = backbone._positions((4, 4, 4)).view(4, 16, 32)

    half = backbone._positions((2, 4, 4)).view(2, 16, 32)

    # Two slots for four: each lies in the middle of a pair.
    torch.testing.assert_close(half, (table[0::2] + table[1::2]) / 2)


@pytest.mark.parametrize("backbone", [VIT, CSN], ids=["vit", "csn"])
@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_corrected_model_takes_other_frame_counts_and_sizes_than_in_training(backbone, output_frames):
    model = randomized(tiny_config(**CORRECTED, backbone_config=backbone, output_frames=output_frames))

    outputs = model(torch.randn(2, 8, 3, 48, 64), output_attentions=True)

    frames = 1 if output_frames == "keyframe" else 8
    assert outputs.logits.shape == (2, frames, 3, 5)
    assert outputs.class_attentions[0].shape[:3] == (2, frames, 3)
    assert outputs.logits.isfinite().all()


def test_frames_must_fill_tubelets():
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=VIT))

    with pytest.raises(ValueError, match="must be a multiple of 2, got 5"):
        model(torch.zeros(1, 5, 3, 32, 32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"backbone_config": CSN, "num_feature_levels": 3},
            "`num_feature_levels` must be 4 with a CSN backbone, got 3",
        ),
        ({"backbone_config": CSN, "d_model": 48}, "`d_model` must be a multiple of 32"),
        ({"problem_type": "regression"}, "`problem_type` must be multi_label_classification or single_label"),
        ({"dropout": 1.5}, "`dropout` must be between 0 and 1, got 1.5"),
        ({"classifier_dropout": -0.1}, "`classifier_dropout` must be between 0 and 1, got -0.1"),
        ({"focal_alpha": -1.0}, "`focal_alpha` must be between 0 and 1, got -1.0"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be at least 0 and less than 1, got 1.0"),
        ({"frames_per_second": 0}, "`frames_per_second` must be more than 0, got 0"),
        ({"eos_coefficient": -0.1}, "`eos_coefficient` must be at least 0, got -0.1"),
        ({"positive_weight": math.nan}, "`positive_weight` must be at least 0, got nan"),
        ({"decoder_attention_heads": 0}, "`decoder_attention_heads` must be at least 1, got 0"),
        ({"decoder_attention_heads": 1}, "`decoder_attention_heads` must be a multiple of 2"),
        ({"class_groups": [5, 0]}, "`class_groups` must be one or more sizes of at least 1"),
        ({"class_groups": [3, 1]}, r"sum to the 5 classes \(pass class_groups=None for other classes\), got \[3, 1\]"),
        ({"backbone_config": VIT | {"num_attention_heads": 0}}, "`num_attention_heads` must be at least 1, got 0"),
        ({"backbone_config": VIT | {"drop_path_rate": 2.0}}, "`drop_path_rate` must be between 0 and 1, got 2.0"),
    ],
)
def test_values_that_no_model_can_have_are_refused(values, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**values)


def test_model_with_class_groups_is_loaded_for_other_classes_without_them(tmp_path):
    ClassQueryForVideoActionDetection(tiny_config(class_groups=[3, 2])).save_pretrained(tmp_path)
    other = {"num_labels": 4, "ignore_mismatched_sizes": True}

    with pytest.raises(StrictDataclassClassValidationError, match="pass class_groups=None for other classes"):
        ClassQueryForVideoActionDetection.from_pretrained(tmp_path, **other)
    model = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, class_groups=None, **other)

    assert (model.config.num_labels, model.config.class_groups) == (4, None)


def test_clip_without_a_real_pixel_is_refused():
    model = ClassQueryForVideoActionDetection(tiny_config(padding="masked"))
    mask = torch.ones(2, 32, 32)
    mask[1] = 0

    with pytest.raises(ValueError, match="`pixel_mask` of clip 1 is all zero"):
        model(torch.zeros(2, 4, 3, 32, 32), pixel_mask=mask)
