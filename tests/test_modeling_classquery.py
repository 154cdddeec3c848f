"""The network against the goldens of the published one, and as a citizen of transformers."""

import copy
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel
from utils import (
    checkpoint_activations,
    golden_inputs,
    golden_model,
    largest_deviation,
    load_golden,
    tiny_batch,
    tiny_config,
)

from classquery import (
    ClassQueryConfig,
    ClassQueryCSNConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryModel,
)
from classquery.configuration_classquery import CORRECTED
from classquery.loss_classquery import action_detection_loss
from classquery.plan_classquery import join_encodings, valid_ratios


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


# One of each kind of backbone and output, with padding, for what does not depend on the weights.
OF_EACH_KIND = ["vit_sf_16f_pad", "vit_ucf_8f", "csn50_sf_16f"]
of_each_kind = pytest.mark.parametrize(
    "golden_run",
    [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in GOLDENS],
    indirect=True,
)


@pytest.fixture(scope="module", params=GOLDENS)
def golden_run(request):
    """Facts and tensors of a golden, our model with its weights, its inputs and its outputs."""
    facts, expected = load_golden(request.param)
    model, inputs = golden_model(facts), golden_inputs(facts)
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    return facts, expected, model, inputs, outputs


def test_outputs_match_the_published_network(golden_run):
    facts, expected, _, _, outputs = golden_run

    _, share_of_the_tolerance = largest_deviation(outputs, facts, expected)

    assert share_of_the_tolerance <= 1


def test_outputs_on_a_gpu_match_the_published_network(golden_run, gpu, monkeypatch):
    facts, expected, _, inputs, _ = golden_run
    # PyTorch convolves in TF32 there unless told otherwise.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, inputs = golden_model(facts).to(gpu), {name: tensor.to(gpu) for name, tensor in inputs.items()}

    with torch.no_grad():
        outputs = model(**inputs)

    assert largest_deviation(outputs, facts, expected)[1] <= 1


FULL_GOLDENS = Path(os.environ.get("CLASSQUERY_GOLDENS", "."))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FULL_GOLDENS.glob("full_*.json")))
def test_full_size_outputs_match_the_published_network(name):
    """Run with the folder of the full-size goldens in CLASSQUERY_GOLDENS: 2 to 6 GB, up to three minutes each."""
    facts, expected = load_golden(name, FULL_GOLDENS)

    with torch.no_grad():
        outputs = golden_model(facts)(**golden_inputs(facts))

    assert largest_deviation(outputs, facts, expected)[1] <= 1


def test_intermediate_states_match_the_published_network(golden_run):
    facts, expected, model, inputs, outputs = golden_run
    model, mask = model.model, inputs.get("pixel_mask")

    with torch.no_grad():
        num_frames = model.config.num_frames
        features, padding = model.encode_frames(inputs["pixel_values"], mask)
        plan = model.plan(features, num_frames, padding, every_cell=True)
        masks = plan.level_masks or [torch.ones(len(features[0]), h, w, dtype=torch.bool) for _, h, w in plan.shapes]
        encoded, encodings, _ = model.encoder(features, plan)
        memory_mask = (~masks[-2]).flatten(1).repeat_interleave(len(plan.slot_index), dim=0)
        states = model(**inputs)
        memory_position = model.encodings_of_frames(encodings[-2], plan, len(encoded))
        if mask is not None:
            assert torch.equal(model.memory_mask(plan, torch.float32) < 0, memory_mask)
        ours = {
            **{f"src_l{i}": level for i, level in enumerate(features)},
            "valid_ratios": valid_ratios(masks),
            "encoder_memory": outputs.encoder_last_hidden_state,
            # (levels, frames, cells, channels) -> (levels, cells, frames, channels)
            "decoder_memory": model.resample(encoded, plan).transpose(1, 2),
            "decoder_pos": memory_position.transpose(0, 1),
            "decoder_key_padding_mask": memory_mask.to(torch.uint8),
            "hs": states.actor_hidden_states.flatten(1, 2),
            "cls_hs": states.class_hidden_states.flatten(1, 2),
            "references": outputs.reference_boxes.flatten(1, 2),
        }
        for i, (level_mask, shape) in enumerate(zip(masks, plan.shapes, strict=True)):
            ours[f"mask_l{i}"] = (~level_mask)[:, None].expand(-1, shape[0], -1, -1).to(torch.uint8)
            encoding = join_encodings(plan.encodings[i], shape).expand(len(encoded), *shape, -1)
            ours[f"pos_l{i}"] = encoding.movedim(-1, 1)

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


@of_each_kind
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


@of_each_kind
def test_saved_model_loads_to_the_same_outputs(tmp_path, golden_run):
    _, _, model, inputs, outputs = golden_run

    model.save_pretrained(tmp_path)
    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path)

    with torch.no_grad():
        again = loaded(**inputs, output_attentions=True)
    torch.testing.assert_close(again.logits, outputs.logits, rtol=0, atol=0)
    torch.testing.assert_close(again.pred_boxes, outputs.pred_boxes, rtol=0, atol=0)


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


def test_checkpointing_leaves_the_statistics_of_batch_norms_alone():
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=CSN)).train()
    model.activation_checkpointing_enable()

    model(**tiny_batch(model.config)).loss.backward()

    norms = [m for m in model.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {1}


@pytest.mark.parametrize("name", ["logits", "pred_boxes"])
def test_parity_does_not_pass_what_is_not_a_number(name, golden_run):
    facts, expected, _, _, outputs = golden_run
    broken = copy.copy(outputs)
    broken[name] = outputs[name] * math.nan

    assert not largest_deviation(broken, facts, expected)[1] <= 1


def test_csn_configuration_refuses_what_cannot_work():
    with pytest.raises(StrictDataclassClassValidationError, match="four positive numbers of blocks"):
        ClassQueryCSNConfig(depths=[3, 4, 6])
    with pytest.raises(StrictDataclassClassValidationError, match="between 0 and 5"):
        ClassQueryCSNConfig(freeze_stages=6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_model_takes_single_precision_frames(dtype):
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()
    inputs = {key: value for key, value in tiny_batch(model.config).items() if key != "labels"}
    with torch.no_grad():
        expected = model(**inputs).pred_boxes
        outputs = model.to(dtype)(**inputs)

    assert outputs.logits.dtype == dtype
    torch.testing.assert_close(outputs.pred_boxes.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_model_computes_bit_for_bit_what_the_saved_one_does(tmp_path, dtype):
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    inputs = {key: value for key, value in tiny_batch(model.config).items() if key != "labels"}

    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)

    assert not loaded.training
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        expected, outputs = model.to(dtype)(**inputs), loaded(**inputs)
    for name in ("logits", "pred_boxes", "actor_logits"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=0, atol=0)


@of_each_kind
def test_fused_and_plain_attention_agree(golden_run):
    _, _, model, inputs, outputs = golden_run

    with torch.no_grad():
        attention = model.config._attn_implementation
        logits = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            assert model.model.decoder.localizing_layers[0].self_attn.config._attn_implementation == implementation
            logits.append(model(**inputs).logits)
        model.set_attn_implementation(attention)

    assert attention == "sdpa"
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_other_classes_take_the_rest_of_the_weights(tmp_path):
    model = ClassQueryForVideoActionDetection(tiny_config(class_readout="per_class"))
    model.save_pretrained(tmp_path)

    other = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)

    assert len(other.config.id2label) == len(other.config.label2id) == 7
    changed = {"model.decoder.class_queries", "class_readout", "class_readout_bias"}
    for name, parameter in other.state_dict().items():
        if name in changed:
            assert len(parameter) == 7
            assert parameter.isfinite().all()
        else:
            torch.testing.assert_close(parameter, model.state_dict()[name], rtol=0, atol=0)
    # Initialised like those of a new model, not left as they were in memory.
    assert 0 < other.class_readout.std() < 1
    assert 0 < other.model.decoder.class_queries.abs().max() < 1


def test_autocast_keeps_places_in_single_precision():
    # Forward only: on CPU, torch's gradient of 3-D convolutions overflows in bfloat16, which the script refuses there.
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config()).eval()
    batch = tiny_batch(model.config)
    offsets = []
    for layer in model.model.encoder.layers:
        layer.self_attn.sampling_offsets.register_forward_hook(lambda _, __, output: offsets.append(output.dtype))

    expected = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch, output_hidden_states=True)

    assert outputs.encoder_last_hidden_state.dtype == torch.bfloat16
    assert outputs.pred_boxes.dtype == outputs.reference_boxes.dtype == torch.float32
    assert set(offsets) == {torch.float32}
    # Half precision has eight bits: 1/256 of values around 0.5.
    torch.testing.assert_close(outputs.pred_boxes, expected.pred_boxes, rtol=0, atol=2e-3)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-2, atol=0)


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
            checkpoint_activations(model)
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
