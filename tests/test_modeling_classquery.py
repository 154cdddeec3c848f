"""The network against the goldens of the published one, and as a citizen of transformers."""

import math
from collections import Counter

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from utils import golden_inputs, golden_model, golden_state_dict, load_golden, tiny_batch, tiny_config

from classquery import (
    ClassQueryConfig,
    ClassQueryCSNConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryModel,
    convert_original_state_dict,
)
from classquery.loss_classquery import action_detection_loss
from classquery.modeling_classquery import interleave_heads, sine_position_embedding


GOLDENS = [
    "vit_sf_8f",
    "vit_sf_16f_pad",
    "vit_ucf_8f",
    "vit_jhmdb_8f_pad",
    "vit_sf_224",
    "vit_tubelet1",
    "csn50_sf_16f",
    "csn152_sf_8f",
]


@pytest.fixture(scope="module", params=GOLDENS)
def golden_run(request):
    """Facts and tensors of a golden, our model with its weights, its inputs and its outputs."""
    facts, expected = load_golden(request.param)
    model, inputs = golden_model(facts), golden_inputs(facts)
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    return facts, expected, model, inputs, outputs


def test_outputs_match_the_published_network(golden_run):
    facts, expected, model, _, outputs = golden_run
    if model.config.output_frames == "keyframe":
        expected = {name: t[:, None] if "pred_" in name else t for name, t in expected.items()}
    tolerance = {key: facts["suggested"][key] for key in ("rtol", "atol")}
    layers = {"": outputs, "aux0.": outputs.auxiliary_outputs[0]}

    for prefix, layer in layers.items():
        for ours, published in (
            ("logits", "pred_logits"),
            ("pred_boxes", "pred_boxes"),
            ("actor_logits", "pred_logits_b"),
        ):
            torch.testing.assert_close(layer[ours], expected[prefix + published], **tolerance)


def test_intermediate_states_match_the_published_network(golden_run):
    facts, expected, model, inputs, outputs = golden_run
    model, mask = model.model, inputs.get("pixel_mask")

    with torch.no_grad():
        features = model.feature_pyramid(model.backbone(inputs["pixel_values"]))
        masks = model.level_masks(inputs["pixel_values"], mask, features)
        hidden_states, positions = model.encoder(features, masks)
        shapes = [tuple(level.shape[2:]) for level in features]
        states = model(**inputs)
        memory_position = model.resample_position(positions[-2])
        ours = {
            **{f"src_l{i}": level for i, level in enumerate(features)},
            "valid_ratios": model.encoder.valid_ratios(masks),
            "encoder_memory": outputs.encoder_last_hidden_state,
            # (levels, frames, cells, channels) -> (levels, cells, frames, channels)
            "decoder_memory": model.resample(hidden_states[-1], shapes).transpose(1, 2),
            "decoder_pos": memory_position.transpose(0, 1),
            "decoder_key_padding_mask": (model.memory_mask(masks[-2], torch.float32) < 0).to(torch.uint8),
            "hs": states.actor_hidden_states.flatten(1, 2),
            "cls_hs": states.class_hidden_states.flatten(1, 2),
            "references": outputs.reference_boxes.flatten(1, 2),
        }
        for i, (level_mask, (t, _, _)) in enumerate(zip(masks, shapes, strict=True)):
            ours[f"mask_l{i}"] = (~level_mask)[:, None].expand(-1, t, -1, -1).to(torch.uint8)
            position = sine_position_embedding(level_mask, t, model.config.d_model, "released")
            ours[f"pos_l{i}"] = position.movedim(-1, 1)

    checked = 0
    for stored, reference in expected.items():
        name, _, index = stored.partition("[")
        if name not in ours:
            continue
        tensor = eval(f"tensor[{index}", {"tensor": ours[name]}) if index else ours[name]
        noise = facts["tensors"][stored]["fp32_vs_fp64_max_abs"]
        torch.testing.assert_close(
            tensor, reference, rtol=0, atol=max(2e-5, 20 * noise), msg=lambda m, n=name: f"{n}: {m}"
        )
        checked += 1
    assert checked == len(ours)


def test_published_model_of_all_frames_serves_as_one_of_its_keyframe():
    facts, expected = load_golden("vit_ava_allframe")
    tolerance = {key: facts["suggested"][key] for key in ("rtol", "atol")}

    with torch.no_grad():
        outputs = golden_model(facts)(**golden_inputs(facts))

    torch.testing.assert_close(outputs.logits[:, 0], expected["pred_logits"], **tolerance)
    torch.testing.assert_close(outputs.pred_boxes[:, 0], expected["pred_boxes"], **tolerance)
    torch.testing.assert_close(outputs.actor_logits[:, 0], expected["pred_logits_b"], **tolerance)


def test_class_attentions_sum_to_one_and_leave_the_outputs_alone(golden_run):
    _, _, model, inputs, outputs = golden_run

    with torch.no_grad():
        fused = model(**inputs)

    config = model.config
    height, width = (size // 16 for size in inputs["pixel_values"].shape[-2:])
    attention = outputs.class_attentions[-1]
    assert len(outputs.class_attentions) == config.decoder_layers
    assert attention.shape[1:] == (config.num_output_frames, config.num_queries, config.num_labels, 8, height, width)
    torch.testing.assert_close(attention.sum((-2, -1)), torch.ones(attention.shape[:-2]))
    torch.testing.assert_close(fused.logits, outputs.logits, rtol=1e-4, atol=1e-5)


def test_released_position_heads_of_the_class_attention_ignore_the_class(golden_run):
    _, _, _, _, outputs = golden_run

    content, position = outputs.class_attentions[-1].chunk(2, dim=4)

    assert position.std(dim=3).max() < 1e-6
    assert content.std(dim=3).max() > 1e-3


def test_saved_model_loads_to_the_same_outputs(tmp_path, golden_run):
    _, _, model, inputs, outputs = golden_run

    model.save_pretrained(tmp_path)
    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path)

    # Tensors mapped from a file are aligned otherwise, which alone makes CPU kernels sum in another order.
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        again = loaded(**inputs, output_attentions=True)
    torch.testing.assert_close(again.logits, outputs.logits, rtol=0, atol=0)
    torch.testing.assert_close(again.pred_boxes, outputs.pred_boxes, rtol=0, atol=0)


def test_conversion_drops_prefix_and_reports_all_that_does_not_fit():
    facts, _ = load_golden("vit_sf_8f")
    config = golden_model(facts).config
    state_dict = {f"module.{name}": tensor for name, tensor in golden_state_dict(facts).items()}
    assert convert_original_state_dict(state_dict, config)

    state_dict["module.extra.weight"] = torch.zeros(2)
    state_dict["module.class_embed_b.bias"] = torch.zeros(4)
    del state_dict["module.transformer.level_embed"]

    with pytest.raises(ValueError, match="does not fit") as error:
        convert_original_state_dict(state_dict, config)
    assert "missing: model.encoder.level_embed (4, 256)" in str(error.value)
    assert "unexpected: extra.weight (2,)" in str(error.value)
    assert "shape of actor_head.bias: got (4,), expected (3,)" in str(error.value)


CORRECTED = {
    "sampling_offset_order": "geometric",
    "sine_frequencies": "paired",
    "resampling_grid": "pixel_centers",
    "resampled_position": "nearest",
    "class_attention_heads": "interleaved",
    "class_convolutions": "separate",
    "class_readout": "per_class",
}


@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
@pytest.mark.parametrize("overrides", [{}, CORRECTED], ids=["released", "corrected"])
def test_training_step_gives_every_parameter_a_finite_gradient(overrides, output_frames):
    model = ClassQueryForVideoActionDetection(tiny_config(output_frames=output_frames, **overrides)).train()
    torch.manual_seed(0)

    loss = model(**tiny_batch(model.config)).loss
    loss.backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", CORRECTED)
def test_each_corrected_value_changes_the_outputs(name):
    released = ClassQueryForVideoActionDetection(tiny_config()).eval()
    corrected = ClassQueryForVideoActionDetection(tiny_config(**{name: CORRECTED[name]})).eval()
    # A different value may add parameters, but never renames any.
    missing, unexpected = corrected.load_state_dict(released.state_dict(), strict=False)
    assert not unexpected
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in [*released.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
        corrected.load_state_dict(released.state_dict(), strict=False)
        inputs = {key: tensor for key, tensor in tiny_batch(released.config).items() if key != "labels"}
        difference = released(**inputs).logits - corrected(**inputs).logits

    assert difference.abs().max() > 1e-5


CSN = {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}


def test_frozen_csn_stages_are_not_trained_and_keep_their_statistics():
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=CSN | {"freeze_stages": 3})).train()
    backbone = model.model.backbone
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}

    model(**tiny_batch(model.config)).loss.backward()

    frozen = ("conv1", "bn1", "layer1", "layer2")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, buffer in backbone.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(frozen), name


def test_frozen_batch_norms_keep_their_statistics_but_are_trained():
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=CSN | {"freeze_batch_norm": True})).train()
    before = [buffer.clone() for buffer in model.model.backbone.buffers()]

    model(**tiny_batch(model.config)).loss.backward()

    torch.testing.assert_close(list(model.model.backbone.buffers()), before, rtol=0, atol=0)
    assert model.model.backbone.bn1.weight.grad.abs().sum() > 0


def test_csn_configuration_refuses_what_cannot_work():
    with pytest.raises(StrictDataclassClassValidationError, match="four positive numbers of blocks"):
        ClassQueryCSNConfig(depths=[3, 4, 6])
    with pytest.raises(StrictDataclassClassValidationError, match="between 0 and 5"):
        ClassQueryCSNConfig(freeze_stages=6)


def test_geometric_offsets_of_one_are_one_cell():
    attention = ClassQueryModel(tiny_config(sampling_offset_order="geometric")).encoder.layers[0].self_attn

    scale = attention._offset_scale([(2, 3, 4)], torch.device("cpu"))

    torch.testing.assert_close(scale, torch.tensor([[1 / 4, 1 / 3, 1 / 2]]))


def test_pixel_centers_keep_constant_maps_constant_and_maps_of_the_same_size_as_they_are():
    model = ClassQueryModel(tiny_config(resampling_grid="pixel_centers", output_frames="all"))
    shapes = [(2, 6, 8), (4, 3, 4), (2, 2, 2)]
    num_cells = [math.prod(shape) for shape in shapes]
    states = torch.randn(1, sum(num_cells), 32)
    states[:, : num_cells[0]] = 3.0

    memory = model.resample(states, shapes)

    torch.testing.assert_close(memory[0], torch.full_like(memory[0], 3.0))
    same_size = states[:, num_cells[0] : num_cells[0] + num_cells[1]]
    torch.testing.assert_close(memory[1].flatten(0, 1), same_size[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("value", "slots"), [("released", [0, 1, 0, 1]), ("nearest", [0, 0, 1, 1])])
def test_each_frame_gets_the_position_of_its_time_slot(value, slots):
    model = ClassQueryModel(tiny_config(resampled_position=value, output_frames="all"))
    position = torch.arange(2.0).view(1, 2, 1, 1, 1)

    assert model.resample_position(position).flatten().tolist() == slots


def test_paired_sines_and_cosines_share_their_frequency():
    mask = torch.ones(1, 5, 7, dtype=torch.bool)

    embedding = sine_position_embedding(mask, 3, 32, "paired")

    # Channels 8 to 19 encode the row: 12 channels, here of the third of five rows.
    angle = 3 / (5 + 1e-6) * 2 * math.pi
    expected = [f(angle / 10000 ** (2 * i / 12)) for i in range(6) for f in (math.sin, math.cos)]
    torch.testing.assert_close(embedding[0, 1, 2, 4, 8:20], torch.tensor(expected))


def test_interleaved_heads_see_their_share_of_content_and_position():
    content, position = torch.arange(6.0), -torch.arange(6.0)

    assert interleave_heads(content, position, 2).tolist() == [0, 1, 2, 0, -1, -2, 3, 4, 5, -3, -4, -5]


def test_factorized_table_of_another_size_is_interpolated_even_if_it_has_as_many_cells():
    config = tiny_config(num_frames=4)
    config.backbone_config.position_table = "factorized"
    backbone = ClassQueryModel(config).backbone

    rows = backbone._positions((2, 2, 8)).view(2, 2, 8, 32)[..., 8:20]

    torch.testing.assert_close(rows[:, :, :1].expand_as(rows), rows, rtol=0, atol=1e-5)


def test_half_precision_model_takes_single_precision_frames():
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()
    inputs = {key: value for key, value in tiny_batch(model.config).items() if key != "labels"}
    with torch.no_grad():
        expected = model(**inputs).pred_boxes
        outputs = model.to(torch.bfloat16)(**inputs)

    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.pred_boxes.float(), expected, rtol=0, atol=0.05)


def test_loss_function_is_the_one_of_detection():
    assert ClassQueryForVideoActionDetection(tiny_config()).loss_function is action_detection_loss


@pytest.mark.parametrize("num_feature_levels", [2, 3, 4])
def test_fewer_levels_and_other_widths_work(num_feature_levels):
    config = tiny_config(num_feature_levels=num_feature_levels, d_model=48, decoder_attention_heads=6)

    outputs = ClassQueryForVideoActionDetection(config).eval()(torch.zeros(1, 4, 3, 40, 64))

    assert outputs.logits.shape == (1, 1, config.num_queries, config.num_labels)


def test_untrained_model_starts_from_the_background_prior_with_a_readout_per_class():
    model = ClassQueryForVideoActionDetection(tiny_config(class_readout="per_class")).eval()

    scores = model(torch.zeros(1, 4, 3, 32, 32)).scores

    # 5 %, spread by random readout vectors of unit scale.
    assert scores.mean() < 0.2


def test_score_with_actor_multiplies_the_confidence():
    model = ClassQueryForVideoActionDetection(tiny_config(score_with_actor=True)).eval()

    outputs = model(torch.zeros(1, 4, 3, 32, 32))

    expected = outputs.logits.sigmoid() * outputs.actor_logits.softmax(-1)[..., 1:2]
    torch.testing.assert_close(outputs.scores, expected, rtol=1e-4, atol=2e-5)


def test_gradient_checkpointing_runs_layers_again_and_gives_the_same_gradients():
    model = ClassQueryForVideoActionDetection(tiny_config(dropout=0.0, classifier_dropout=0.0)).train()
    batch = tiny_batch(model.config)
    runs = Counter()
    checkpointed = {
        "block": model.model.backbone.layers[0].attn,
        "encoder layer": model.model.encoder.layers[0].self_attn,
        "convolution block": model.model.decoder.classifying_layers[0].conv_blocks[0].conv,
    }
    for name, module in checkpointed.items():
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))

    gradients, counts = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        runs.clear()
        model(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        counts.append(dict(runs))

    torch.testing.assert_close(*gradients)
    assert counts[1] == {name: 2 * count for name, count in counts[0].items()}


def test_tuple_output_and_bare_model():
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()
    inputs = torch.zeros(1, 4, 3, 32, 32)

    outputs = model(inputs, return_dict=False)
    states = ClassQueryModel(model.config).eval()(inputs)

    assert isinstance(outputs, tuple)
    assert states.actor_hidden_states.shape == (2, 1, 1, model.config.num_queries, model.config.d_model)


def test_wrong_inputs_raise_with_what_to_do():
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()

    with pytest.raises(ValueError, match=r"must have shape \(batch, 4, 3, height, width\), got \(1, 3, 4, 32, 32\)"):
        model(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(ValueError, match="must hold 4 frames .* got 8"):
        model(torch.zeros(1, 8, 3, 32, 32))
    with pytest.raises(ValueError, match="at least 16x16 pixels"):
        model(torch.zeros(1, 4, 3, 8, 32))
    with pytest.raises(ValueError, match="pixel_mask"):
        model(torch.zeros(1, 4, 3, 32, 32), pixel_mask=torch.ones(1, 16, 16))


def test_configuration_refuses_what_cannot_work():
    with pytest.raises(StrictDataclassClassValidationError, match="`d_model` must be a multiple of 16"):
        ClassQueryConfig(d_model=60)
    with pytest.raises(StrictDataclassClassValidationError, match="`num_frames` must be a multiple of 2"):
        ClassQueryConfig(num_frames=15)
    with pytest.raises(StrictDataclassClassValidationError, match="num_feature_levels"):
        ClassQueryConfig(num_feature_levels=1)
