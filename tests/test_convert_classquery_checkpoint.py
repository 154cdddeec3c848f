"""Published weights in every layout they come in, made up here with the weights of the goldens.

`golden/model/published.json.gz` holds the names and shapes of the six published detectors, which of them repeat
another one, which are not used, and how many parameters there are without repetitions.
"""

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutations import try_mutations
from safetensors.torch import load_file, save_file
from scipy.io import savemat
from transformers import (
    AutoModel,
    AutoVideoProcessor,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)
from utils import (
    GOLDEN_DIR,
    golden_config,
    golden_inputs,
    golden_model,
    golden_state_dict,
    load_golden,
    tiny_config,
    write_recipe,
)

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, convert_original_state_dict
from classquery.checkpoint_files_classquery import CheckpointError, _NotRead, _unpickle, read_matlab, read_tensors
from classquery.checkpoint_layouts_classquery import csn_backbone, published_detector
from classquery.conversion_classquery import load_backbone, load_checkpoint, load_transformer
from classquery.convert_classquery_checkpoint import main


PUBLISHED = json.loads(gzip.decompress((GOLDEN_DIR / "model" / "published.json.gz").read_bytes()))

# Parameters of ours; of the published model, without repetitions. The difference are the unused ones and, on our side,
# the biases of the keys of a ViT, which are zero.
PARAMETERS = {
    "AVA22_CSN50": (69_038_941, 69_434_205),
    "AVA22_CSN152": (85_611_357, 86_006_621),
    "AVA22_ViT-B": (138_163_997, 138_550_045),
    "AVA22_ViT-B_v2": (138_163_997, 138_550_045),
    "UCF_ViT-B": (117_634_389, 117_823_061),
    "JHMDB_ViT-B": (117_632_501, 117_821_173),
}


def weightless_model(config: ClassQueryConfig) -> ClassQueryForVideoActionDetection:
    with torch.device("meta"):
        return ClassQueryForVideoActionDetection(config)


def flat_tensors(shapes: dict) -> dict[str, torch.Tensor]:
    """Zeros of any shape that take up the memory of one number."""
    return {name: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for name, shape in shapes.items()}


def backbone_shapes(config: ClassQueryConfig) -> dict[str, torch.Size]:
    tensors = weightless_model(config).model.backbone.state_dict()
    return {f"model.backbone.{n}": t.shape for n, t in tensors.items() if not n.endswith("num_batches_tracked")}


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def golden():
    """Facts and published state dict of the small goldens; computed once each."""
    cache = {}

    def load(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
        if name not in cache:
            facts, _ = load_golden(name)
            cache[name] = facts, golden_state_dict(facts)
        facts, state_dict = cache[name]
        return facts, dict(state_dict)

    return load


# State dicts


def test_conversion_drops_prefix_and_reports_all_that_does_not_fit(golden):
    facts, state_dict = golden("vit_sf_8f")
    config = golden_config(facts)
    state_dict = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    assert convert_original_state_dict(state_dict, config)

    state_dict["module.extra.weight"] = torch.zeros(2)
    state_dict["module.class_embed_b.bias"] = torch.zeros(4)
    state_dict["module.backbone.0.body.blocks.1.attn.v_bias"] = torch.zeros(1, 96)
    state_dict["module.transformer.decoder.bbox_embed.layers.0.bias"] = torch.ones(256)
    del state_dict["module.transformer.level_embed"]
    del state_dict["module.backbone.0.body.blocks.0.attn.q_bias"]

    with pytest.raises(ValueError, match="does not fit") as error:
        convert_original_state_dict(state_dict, config)
    assert str(error.value).splitlines()[1:] == [
        "  missing: model.backbone.layers.0.attn.qkv.bias (96,), "
        "called backbone.0.body.blocks.0.attn.q_bias in the file",
        "  missing: model.encoder.level_embed (4, 256), called transformer.level_embed in the file",
        "  unexpected: extra.weight (2,)",
        "  shape of actor_head.bias: got (4,), expected (3,), called class_embed_b.bias in the file",
        "  shape of model.backbone.layers.1.attn.qkv.bias: got (1, 96), expected (96,), "
        "called backbone.0.body.blocks.1.attn.v_bias in the file",
        "  transformer.decoder.bbox_embed.layers.0.bias differs from bbox_embed.layers.0.bias, which it should repeat",
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_detectors_convert_and_only_what_is_unused_or_repeated_is_dropped(name):
    facts = PUBLISHED[name]
    config, tensors = golden_config(facts), flat_tensors(facts["state_dict"])
    shapes = {name: t.shape for name, t in weightless_model(config).state_dict().items()}
    weights = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}

    converted = convert_original_state_dict(tensors, config)
    used = published_detector(tensors, config, weights).used

    assert {name: tensor.shape for name, tensor in converted.items()} == shapes
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert tensors.keys() - used == {*facts["unused"], *facts["tied"], *counters}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_detectors_but_for_unused_ones(name):
    facts = PUBLISHED[name]
    ours, published = PARAMETERS[name]
    model = weightless_model(golden_config(facts))

    unused = sum(int(np.prod(facts["state_dict"][unused])) for unused in facts["unused"])
    key_biases = sum(t.numel() // 3 for n, t in model.named_parameters() if n.endswith("qkv.bias"))
    assert sum(parameter.numel() for parameter in model.parameters()) == ours
    assert ours - key_biases + unused == published == facts["parameters"]


@pytest.mark.parametrize(
    "name",
    [
        "transformer.encoder.layers.0.conv_blocks.1.conv1.weight",
        "transformer.decoder.cls_layers.0.conv_blocks.3.conv1.weight",
        "transformer.decoder.cls_layers.2.q_proj.weight",
        "transformer.decoder.cls_norm.scale",
        "transformer.bbox_embed.layers.0.weight",
        "backbone.0.body.norm.num_batches_tracked",
        "actor_head.weight",
        "module.class_embed_b.weight",
        "transformer.layers.0.feed_forward.fc1.weight",
    ],
)
def test_names_that_only_look_like_known_ones_are_unexpected(golden, name):
    facts, state_dict = golden("vit_sf_8f")
    state_dict[name] = state_dict["class_embed_b.weight"]

    with pytest.raises(ValueError, match="does not fit") as error:
        convert_original_state_dict(state_dict, golden_config(facts))

    assert str(error.value).splitlines()[1:] == [f"  unexpected: {name} (3, 256)"]


def test_repetition_of_a_missing_tensor_does_not_take_its_place(golden):
    facts, state_dict = golden("vit_sf_8f")
    del state_dict["bbox_embed.layers.0.bias"]

    with pytest.raises(ValueError, match="missing: model.decoder.box_head.layers.0.bias") as error:
        convert_original_state_dict(state_dict, golden_config(facts))

    assert "unexpected: transformer.decoder.bbox_embed.layers.0.bias (256,)" in str(error.value)


def test_published_detector_does_not_fit_blocks_of_its_own_or_a_readout_per_class(golden):
    facts, state_dict = golden("vit_sf_8f")
    config = golden_config(facts)
    config.class_convolutions, config.class_readout = "separate", "per_class"

    with pytest.raises(ValueError, match="missing: class_readout ") as error:
        convert_original_state_dict(state_dict, config)

    assert "missing: model.decoder.classifying_layers.1.conv_blocks.2.conv.weight" in str(error.value)


@pytest.mark.parametrize(("rows", "found"), [(7, (7, 4)), (10, (2, 5, 4))])
def test_anchors_of_another_number_of_queries_or_frames_do_not_fit(golden, rows, found):
    facts, state_dict = golden("vit_sf_8f")
    state_dict["refpoint_embed.weight"] = torch.zeros(rows, 4)

    with pytest.raises(ValueError, match="does not fit") as error:
        convert_original_state_dict(state_dict, golden_config(facts))

    assert f"shape of model.reference_boxes: got {found}, expected (1, 5, 4)" in str(error.value)


# Backbones


@pytest.mark.parametrize("extra", [[], ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]])
def test_vit_file_gives_the_backbone_of_the_detector(tmp_path, golden, extra):
    facts, state_dict = golden("vit_sf_8f")
    expected = golden_model(facts)
    body = {name.removeprefix("backbone.0.body."): t for name, t in state_dict.items() if ".body." in name}
    torch.save({"module": body | dict.fromkeys(extra, torch.zeros(96))}, tmp_path / "vit.pth")
    model = ClassQueryForVideoActionDetection(expected.config)
    before = snapshot(model)

    report = load_backbone(model, tmp_path / "vit.pth")

    for name, tensor in model.state_dict().items():
        is_backbone = name.startswith("model.backbone.")
        reference = expected.state_dict()[name] if is_backbone else before[name]
        torch.testing.assert_close(tensor, reference, rtol=0, atol=0)
        assert (name in report.loaded, name in report.initial) == (is_backbone, not is_backbone)
    assert report.dropped == extra
    assert report.loaded["model.backbone.layers.0.attn.qkv.bias"] == ("blocks.0.attn.q_bias", "blocks.0.attn.v_bias")


def test_vit_file_without_final_norm_starts_from_fc_norm_and_without_either_does_not_fit(tmp_path, golden):
    facts, state_dict = golden("vit_sf_8f")
    body = {name.removeprefix("backbone.0.body."): t for name, t in state_dict.items() if ".body." in name}
    del body["norm.weight"], body["norm.bias"]
    model = ClassQueryForVideoActionDetection(golden_config(facts))

    torch.save({"module": body}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="missing: model.backbone.layernorm.weight"):
        load_backbone(model, tmp_path / "vit.pth")
    body["fc_norm.weight"], body["fc_norm.bias"] = torch.full((96,), 2.0), torch.full((96,), 3.0)
    torch.save({"module": body}, tmp_path / "vit.pth")
    report = load_backbone(model, tmp_path / "vit.pth")

    assert report.loaded["model.backbone.layernorm.weight"] == ("fc_norm.weight",)
    assert model.model.backbone.layernorm.weight.eq(2).all()
    assert model.model.backbone.layernorm.bias.eq(3).all()


VIDEOMAE = {
    "image_size": [32, 48],
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "layer_norm_eps": 1e-6,
}


def videomae(model_class, use_mean_pooling: bool):
    """A VideoMAE with random weights, biases and norms included."""
    torch.manual_seed(0)
    model = model_class(VideoMAEConfig(**VIDEOMAE, use_mean_pooling=use_mean_pooling)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def videomae_detector() -> ClassQueryForVideoActionDetection:
    config = tiny_config()
    config.backbone_config.position_grid = [4, 6]
    return ClassQueryForVideoActionDetection(config).eval()


@pytest.mark.parametrize(
    ("container", "is_legacy"),
    [("folder", True), ("folder", False), ("safetensors", True), ("bin", False)],
    ids=["folder-q_bias", "folder-query.bias", "safetensors-q_bias", "bin-query.bias"],
)
@pytest.mark.parametrize(
    ("model_class", "norm"),
    [
        (VideoMAEModel, "layernorm"),
        (VideoMAEModel, None),
        (VideoMAEForPreTraining, "layernorm"),
        (VideoMAEForVideoClassification, "fc_norm"),
    ],
)
def test_backbone_of_videomae_gives_the_same_states(tmp_path, model_class, norm, container, is_legacy):
    theirs = videomae(model_class, use_mean_pooling=norm != "layernorm")
    theirs.save_pretrained(tmp_path, save_original_format=is_legacy)
    path = {"folder": tmp_path, "safetensors": tmp_path / "model.safetensors", "bin": tmp_path / "weights.bin"}
    saved = load_file(path["safetensors"])
    assert any(name.endswith("q_bias") for name in saved) == is_legacy
    torch.save(saved, path["bin"])
    model = videomae_detector()

    report = load_backbone(model, path[container])

    pixel_values = torch.randn(2, 4, 3, 32, 48)
    with torch.no_grad():
        expected = getattr(theirs, "videomae", theirs)(pixel_values).last_hidden_state
        if norm != "layernorm":
            weights = (theirs.fc_norm.weight, theirs.fc_norm.bias) if norm else (None, None)
            expected = F.layer_norm(expected, (32,), *weights, eps=1e-6)
        states = model.model.backbone(pixel_values)
    # Ten roundings or so of float32 in another order.
    torch.testing.assert_close(states.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
    kept = [name for name in report.initial if name.startswith("model.backbone.")]
    assert kept == ([] if norm else ["model.backbone.layernorm.weight", "model.backbone.layernorm.bias"])
    assert len(saved) == len(report.dropped) + sum(len(parts) for parts in report.loaded.values())
    heads = ("decoder.", "encoder_to_decoder.", "mask_token", "classifier.")
    assert all(name.startswith(heads) for name in report.dropped)


def test_key_bias_of_videomae_is_taken_as_it_is(tmp_path):
    theirs = videomae(VideoMAEModel, use_mean_pooling=False)
    tensors = {name: t.clone() for name, t in theirs.state_dict().items()}
    tensors["encoder.layer.1.attention.attention.key.bias"] = torch.arange(32.0)
    save_file(tensors, tmp_path / "videomae.safetensors")
    model = videomae_detector()

    load_backbone(model, tmp_path / "videomae.safetensors")

    first, second = (layer.attn.qkv.bias.chunk(3)[1] for layer in model.model.backbone.layers)
    assert first.eq(0).all()
    assert second.tolist() == list(range(32))


def test_misfits_of_videomae_are_listed_and_change_nothing(tmp_path):
    tensors = {name: t.clone() for name, t in videomae(VideoMAEModel, use_mean_pooling=False).state_dict().items()}
    del tensors["encoder.layer.0.attention.attention.key.weight"]
    tensors["encoder.layer.0.attention.attention.value.weight"] = torch.zeros(16, 32)
    tensors["encoder.layer.1.attention.attention.q_bias"] = torch.zeros(32)
    tensors["pooler.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "videomae.safetensors")
    model = videomae_detector()
    before = snapshot(model)

    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_backbone(model, tmp_path / "videomae.safetensors")

    attention = "encoder.layer.{}.attention.attention."
    ours = "model.backbone.layers.{}.attn.qkv."
    assert str(error.value).splitlines()[1:] == [
        f"  missing: {ours.format(0)}weight (32, 32), called {attention.format(0)}key.weight in the file",
        f"  missing: {ours.format(1)}bias (32,), called {attention.format(1)}v_bias in the file",
        f"  unexpected: {attention.format(1)}query.bias (32,)",
        f"  unexpected: {attention.format(1)}value.bias (32,)",
        "  unexpected: pooler.weight (2,)",
        f"  shape of {ours.format(0)}weight: got (16, 32), expected (32, 32), "
        f"called {attention.format(0)}value.weight in the file",
    ]
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


STAGE_STARTS = {"CSN-50": (0, 3, 7, 13), "CSN-152": (0, 3, 11, 47)}
STATISTICS = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def matlab_name(name: str, stage_starts: tuple[int, ...]) -> str | None:
    """Name in the MATLAB files of a published tensor of the CSN body, written down apart from the converter's."""
    *path, module, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return None
    if not path:
        return "conv1_w" if module == "conv1" else f"conv1_spatbn_relu_{STATISTICS[leaf]}"
    index = stage_starts[int(path[0][-1]) - 1] + int(path[1])
    if path[2:] == ["down_sample"]:
        stem = f"shortcut_projection_{index}"
        return f"{stem}_w" if module == "0" else f"{stem}_spatbn_{STATISTICS[leaf]}"
    if module.startswith("conv"):
        return f"comp_{index}_conv_{module[-1]}_w"
    return f"comp_{index}_spatbn_{module[-1]}_{STATISTICS[leaf]}"


@pytest.mark.parametrize("oned_as", ["row", pytest.param("column", marks=pytest.mark.slow)])
def test_matlab_file_gives_the_backbone_of_the_detector(tmp_path, golden, oned_as):
    facts, state_dict = golden("csn50_sf_16f")
    expected = convert_original_state_dict(state_dict, golden_config(facts))
    body = {name.removeprefix("backbone.0.body."): t for name, t in state_dict.items() if ".body." in name}
    names = {name: matlab_name(name, STAGE_STARTS["CSN-50"]) for name in body}
    arrays = {names[name]: tensor.numpy() for name, tensor in body.items() if names[name]}
    savemat(tmp_path / "csn.mat", arrays | {"last_out_L400_b": np.zeros(400)}, oned_as=oned_as)
    model = ClassQueryForVideoActionDetection(golden_config(facts))

    report = load_backbone(model, tmp_path / "csn.mat")

    for name, tensor in model.state_dict().items():
        if name.startswith("model.backbone."):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert report.dropped == ["last_out_L400_b"]
    assert not any(name.startswith("model.backbone.") for name in report.initial)


@pytest.mark.parametrize("depth", STAGE_STARTS)
def test_matlab_names_of_all_blocks_are_known(depth):
    facts = PUBLISHED[f"AVA22_{depth.replace('-', '')}"]
    config = golden_config(facts)
    shapes = {n.removeprefix("backbone.0.body."): s for n, s in facts["state_dict"].items() if ".body." in n}
    names = {matlab_name(name, STAGE_STARTS[depth]): shape for name, shape in shapes.items()}
    names.pop(None)

    source = csn_backbone(flat_tensors(names), config.backbone_config.depths, backbone_shapes(config))

    assert source.used == names.keys()
    assert source.collect("").keys() == backbone_shapes(config).keys()


def test_matlab_file_of_another_depth_lists_what_does_not_fit(tmp_path):
    config = tiny_config(backbone_config={"model_type": "classquery_csn", "depths": [1, 1, 1, 2]})
    savemat(tmp_path / "csn.mat", {"conv1_w": np.zeros((64, 3, 3, 7)), "comp_9_conv_1_w": np.zeros((2, 2))})

    with pytest.raises(ValueError, match="csn.mat does not fit the model") as error:
        load_backbone(weightless_model(config), tmp_path / "csn.mat")

    assert "shape of model.backbone.conv1.weight: got (64, 3, 3, 7), expected (64, 3, 3, 7, 7)" in str(error.value)
    assert "unexpected: comp_9_conv_1_w (2, 2)" in str(error.value)
    assert "called comp_4_spatbn_3_riv in the file" in str(error.value)


# Transformers of a first stage


KEYFRAME, ALL_FRAMES = "vit_sf_8f", "vit_jhmdb_8f_pad"


@pytest.mark.parametrize(
    ("source", "target", "layout"),
    [
        (ALL_FRAMES, KEYFRAME, "published"),
        (KEYFRAME, ALL_FRAMES, "ours"),
        # Seconds each; what tells them from the two above is little.
        *(
            pytest.param(source, target, layout, marks=pytest.mark.slow)
            for source, target in itertools.product((KEYFRAME, ALL_FRAMES), repeat=2)
            for layout in ("published", "ours")
        ),
    ],
)
def test_transformer_of_a_first_stage_is_taken_over(tmp_path, golden, source, target, layout):
    facts, state_dict = golden(source)
    if layout == "published":
        path = tmp_path / "stage_one.pth"
        torch.save({"model": {f"module.{name}": t for name, t in state_dict.items()}, "epoch": 12}, path)
    else:
        path = tmp_path
        golden_model(facts).save_pretrained(path)
    model = ClassQueryForVideoActionDetection(golden_config(golden(target)[0]))
    before = snapshot(model)

    report = load_transformer(model, path)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half().float() if layout == "published" else tensor

    # The five queries of the published table are five blocks of one row per frame.
    rows = rounded(state_dict["refpoint_embed.weight"]).view(5, -1, 4)
    for frame, anchors in enumerate(model.model.reference_boxes):
        if source == KEYFRAME:
            expected_anchors = rows[:, 0]
        else:
            expected_anchors = rows[:, 4 if target == KEYFRAME else frame]
        torch.testing.assert_close(anchors, expected_anchors, rtol=0, atol=0)
    expected = convert_original_state_dict(state_dict, golden_config(facts))
    for name, tensor in model.state_dict().items():
        is_transformer = name.startswith(("model.encoder.", "model.decoder."))
        if name != "model.reference_boxes":
            reference = rounded(expected[name]) if is_transformer else before[name]
            torch.testing.assert_close(tensor, reference, rtol=0, atol=0)
            assert (name in report.loaded, name in report.initial) == (is_transformer, not is_transformer)
    assert "model.reference_boxes" in report.loaded


@pytest.mark.parametrize("layout", ["published", "ours"])
def test_first_stage_of_other_classes_and_layers_lists_what_does_not_fit(tmp_path, golden, layout):
    facts, state_dict = golden(KEYFRAME)
    path = tmp_path / "stage_one.pth"
    if layout == "published":
        torch.save({"model": state_dict}, path)
    else:
        torch.save(golden_model(facts).state_dict(), path)
    config = golden_config(facts)
    config.num_labels, config.encoder_layers, config.decoder_layers = 9, 1, 3
    model = ClassQueryForVideoActionDetection(config)
    before = snapshot(model)

    with pytest.raises(ValueError, match="stage_one.pth does not fit the model") as error:
        load_transformer(model, path)

    lines = str(error.value).splitlines()[1:]
    classes = "  shape of model.decoder.class_queries: got (7, 256), expected (9, 256) (one row per class)"
    assert sum(line.startswith(classes) for line in lines) == 1
    missing = {line.split(" ")[3] for line in lines if line.startswith("  missing: ")}
    assert missing == {name for name in before if "ing_layers.2." in name}
    prefix = "transformer.encoder.layers.1." if layout == "published" else "model.encoder.layers.1."
    assert sum(line.startswith(f"  unexpected: {prefix}") for line in lines) == 16
    assert len(lines) == 1 + len(missing) + 16
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def test_first_stage_with_tensors_of_unknown_use_does_not_fit(tmp_path, golden):
    facts, state_dict = golden(KEYFRAME)
    torch.save({"model": state_dict | {"query_embed.weight": torch.zeros(2)}}, tmp_path / "stage_one.pth")

    with pytest.raises(ValueError, match=r"unexpected: query_embed.weight \(2,\)"):
        load_transformer(weightless_model(golden_config(facts)), tmp_path / "stage_one.pth")


# Files


@pytest.mark.parametrize("prefix", ["encoder.", "model.", "module.", "_orig_mod.", "module.model.backbone."])
def test_a_prefix_of_a_backbone_is_taken_off_and_named(tmp_path, caplog, prefix):
    model = ClassQueryForVideoActionDetection(tiny_config())
    body = published_vit(model)
    # What pre-training leaves beside it.
    wrapped = {f"{prefix}{name}": tensor for name, tensor in body.items()} | {"mask_token": torch.zeros(1, 1, 32)}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.ckpt.pth")
    other = ClassQueryForVideoActionDetection(tiny_config())

    report = load_backbone(other, tmp_path / "wrapped.ckpt.pth")

    assert report.prefix == prefix
    assert f"begin with {prefix!r}, which was taken off" in caplog.text
    for name, tensor in other.model.backbone.state_dict().items():
        assert torch.equal(tensor, model.model.backbone.state_dict()[name])


def published_vit(model: ClassQueryForVideoActionDetection) -> dict[str, torch.Tensor]:
    """The backbone of a model in the published layout."""
    renamed = {"patch_embedding.": "patch_embed.proj.", "layers.": "blocks.", "layernorm.": "norm."}
    tensors = {}
    for name, tensor in model.model.backbone.state_dict().items():
        theirs = next((new + name.removeprefix(old) for old, new in renamed.items() if name.startswith(old)), name)
        if theirs.endswith("qkv.bias"):
            query, key, value = tensor.chunk(3)
            assert not key.any()
            stem = theirs.removesuffix("qkv.bias")
            tensors |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
        else:
            tensors[theirs] = tensor.clone()
    return tensors


def test_the_transformer_of_a_wrapped_detector_of_ours_is_read(tmp_path):
    model = ClassQueryForVideoActionDetection(tiny_config())
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "ours.pth")

    report = load_transformer(ClassQueryForVideoActionDetection(tiny_config()), tmp_path / "ours.pth")

    assert report.prefix == "_orig_mod."
    assert "model.reference_boxes" in report.loaded


def check_tensors(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        assert isinstance(name, str)
        tensor.sum()  # touches all of its memory


@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_damaged_weights_are_refused_or_read(tmp_path, suffix):
    tensors = {f"layer.{index}.weight": torch.full((5, 7), float(index)) for index in range(4)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        content = {"state_dict": tensors, "args": argparse.Namespace(lr=0.1)}
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")

    outcomes = try_mutations(read_tensors, path, CheckpointError, count=200, check=check_tensors)

    assert outcomes["refused"] > 20


def test_damaged_matlab_files_are_refused_whatever_becomes_of_the_reader(tmp_path):
    """Each takes a process, which a damaged file may end."""
    savemat(tmp_path / "csn.mat", {"conv1_w": np.arange(600.0).reshape(20, 30)}, do_compression=True)
    whole = (tmp_path / "csn.mat").read_bytes()
    (tmp_path / "csn.mat").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(CheckpointError, match="csn.mat is damaged or no MATLAB file .*; fetch it again"):
        read_matlab(tmp_path / "csn.mat")


def test_files_that_hold_no_weights_are_refused_with_the_reason(tmp_path):
    model = weightless_model(tiny_config())
    csn = weightless_model(tiny_config(backbone_config={"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}))
    (tmp_path / "empty").mkdir()
    for name in ("text.pth", "text.safetensors", "text.mat", "notes.txt"):
        (tmp_path / name).write_text("weights: see the other folder\n" * 10)
    torch.save({"model": {}, "args": argparse.ArgumentParser}, tmp_path / "code.pth")
    torch.save({3: torch.zeros(2)}, tmp_path / "numbers.pth")
    torch.save({"model": argparse.Namespace()}, tmp_path / "namespace.pth")
    (tmp_path / "garbage.pth").write_bytes(b"\x80\x02" + b"(e" * 9)
    torch.save({"epoch": 1, "state_dict": {"a": torch.zeros(2)}}, tmp_path / "nested.pth")
    torch.save({"epoch": 1, "weights": {"a": torch.zeros(2)}}, tmp_path / "apart.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    whole = (tmp_path / "nested.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    savemat(tmp_path / "csn.mat", {"conv1_w": "text"})

    for load in (load_checkpoint, load_backbone, load_transformer):
        for name, reason in (
            ("absent.pth", "there is no file or folder .*absent.pth"),
            ("empty", "holds neither model.safetensors nor pytorch_model.bin"),
            ("text.pth", "was not written by torch.save"),
            ("text.safetensors", "damaged or no safetensors file"),
            ("notes.txt", "weights come as .pth, .pt, .bin or .safetensors .* got .*notes.txt"),
            ("csn.mat", r"of a CSN backbone as \.mat"),
            ("code.pth", "would run code from the file"),
            ("nested.pth", r"has none of the \d+ names that are expected, .* it holds 1 tensors, as a$"),
            ("apart.pth", "on its own or under 'state_dict', .* got epoch, weights$"),
            ("list.pth", "got list"),
            ("half.pth", "damaged or not complete"),
            ("garbage.pth", "damaged or not complete"),
            ("numbers.pth", "must hold a dict of tensors, .* got 3"),
            ("namespace.pth", "must hold a dict of tensors, .* got model"),
        ):
            with pytest.raises(ValueError, match=reason):
                load(model, tmp_path / name)
    for name, reason in (
        ("absent.mat", r"come as a MATLAB file \(.mat\), got .*absent.mat"),
        ("nested.pth", r"come as a MATLAB file \(.mat\), got .*nested.pth"),
        ("text.mat", "damaged or no MATLAB file"),
        ("csn.mat", "must hold arrays of numbers; these are none: conv1_w"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_backbone(csn, tmp_path / name)


def test_what_training_scripts_save_beside_the_weights_is_passed_over(tmp_path, golden):
    facts, state_dict = golden("vit_sf_8f")
    beside = {
        "args": argparse.Namespace(lr=np.float64(1e-4), out=Path("a")),
        "best": np.float32(0.3),
        "n": np.int64(3),
    }
    torch.save({"model": state_dict} | beside, tmp_path / "published.pth")
    model = ClassQueryForVideoActionDetection(golden_config(facts))

    load_checkpoint(model, tmp_path / "published.pth")

    torch.testing.assert_close(model.state_dict(), golden_model(facts).state_dict(), rtol=0, atol=0)


def test_types_that_are_passed_over_are_never_built(tmp_path):
    class Scalar:
        def __reduce__(self):
            return np.float64(1).__reduce__()[0], (np.dtype("O"), b"not an object")

    torch.save({"scalar": Scalar(), "args": argparse.Namespace(load=1)}, tmp_path / "a.pth")

    content = _unpickle(tmp_path / "a.pth")

    assert {type(value) for value in content.values()} == {_NotRead}
    assert not any(vars(value) for value in content.values())


@pytest.mark.parametrize(
    "broken",
    [torch.zeros(3, 256, dtype=torch.int64), torch.full((3, 256), torch.nan), torch.full((3, 256), -torch.inf)],
    ids=["integers", "nan", "inf"],
)
def test_weights_that_are_no_finite_numbers_are_refused_by_name(tmp_path, golden, broken):
    facts, state_dict = golden("vit_sf_8f")
    torch.save(state_dict | {"class_embed_b.weight": broken}, tmp_path / "published.pth")
    model = ClassQueryForVideoActionDetection(golden_config(facts))
    before = snapshot(model)

    with pytest.raises(ValueError, match="no finite floating-point numbers are in") as error:
        load_checkpoint(model, tmp_path / "published.pth")

    assert str(error.value).splitlines()[1:] == [f"  class_embed_b.weight ({broken.dtype})"]
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def test_weights_of_our_own_are_not_converted_again(tmp_path):
    model = ClassQueryForVideoActionDetection(tiny_config())
    torch.save(model.state_dict(), tmp_path / "ours.pth")

    with pytest.raises(ValueError, match="ours.pth holds the weights of one of our models, .* from_pretrained"):
        load_checkpoint(model, tmp_path / "ours.pth")


# Command


@pytest.mark.parametrize("name", ["vit_sf_8f", pytest.param("vit_ucf_8f", marks=pytest.mark.slow), "csn50_sf_16f"])
def test_converted_detector_loads_to_the_same_outputs(tmp_path, golden, capsys, name):
    facts, state_dict = golden(name)
    torch.save({"model": {f"module.{name}": t for name, t in state_dict.items()}}, tmp_path / "published.pth")
    recipe = write_recipe(tmp_path / "recipe.json", golden_config(facts))
    output = tmp_path / "models" / "converted"

    main(["--recipe", recipe, "--output", str(output), "--checkpoint", str(tmp_path / "published.pth")])

    printed = capsys.readouterr().out
    assert "published.pth: loaded " in printed
    assert "\n  transformer.decoder.cls_layers.*.q_proj.weight (2)\n" in printed
    assert "initialised with seed 0: 0 tensors\n" in printed
    assert printed.splitlines()[-1].endswith("published files stay under their own licence, CC BY-NC 4.0.")
    assert {path.name for path in output.parent.iterdir()} == {"converted"}
    assert AutoVideoProcessor.from_pretrained(output).size.shortest_edge == 64
    expected, inputs = golden_model(facts), golden_inputs(facts)
    loaded = AutoModel.from_pretrained(output, dtype=torch.float32)
    with torch.no_grad():
        assert_same_bits(detections(loaded(**inputs)), detections(expected(**inputs)))
    in_half = AutoModel.from_pretrained(output, dtype=torch.bfloat16)
    assert_same_bits(in_half.state_dict(), expected.to(torch.bfloat16).state_dict())


@pytest.mark.slow
def test_converted_detector_computes_the_same_in_half_precision(tmp_path, golden):
    """Minutes where the processor has no instructions for bfloat16."""
    facts, state_dict = golden(KEYFRAME)
    torch.save({"model": state_dict}, tmp_path / "published.pth")
    recipe = write_recipe(tmp_path / "recipe.json", golden_config(facts))
    main(["--recipe", recipe, "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "published.pth")])

    loaded = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)

    with torch.no_grad():
        outputs, reference = (
            model(**golden_inputs(facts)) for model in (loaded, golden_model(facts).to(loaded.dtype))
        )
    assert_same_bits(detections(outputs), detections(reference))


def detections(outputs) -> dict[str, torch.Tensor]:
    return {name: outputs[name] for name in ("logits", "pred_boxes", "actor_logits")}


def assert_same_bits(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)


def test_model_for_a_second_stage_is_made_of_its_parts_and_a_seed(tmp_path, golden, capsys):
    facts, state_dict = golden(KEYFRAME)
    recipe = write_recipe(tmp_path / "recipe.json", golden_config(facts))
    torch.save({"model": state_dict}, tmp_path / "stage_one.pth")
    body = {name.removeprefix("backbone.0.body."): t for name, t in state_dict.items() if ".body." in name}
    torch.save({"module": body}, tmp_path / "vit.pth")
    parts = {
        "both": ["--backbone", str(tmp_path / "vit.pth"), "--transformer", str(tmp_path / "stage_one.pth")],
        "again": ["--backbone", str(tmp_path / "vit.pth"), "--transformer", str(tmp_path / "stage_one.pth")],
        "other": ["--transformer", str(tmp_path / "stage_one.pth"), "--seed", "1"],
    }

    for name, arguments in parts.items():
        (tmp_path / name).mkdir()
        main(["--recipe", recipe, "--output", str(tmp_path / name), *arguments])

    both, again, other = (load_file(tmp_path / name / "model.safetensors") for name in parts)
    torch.testing.assert_close(both, again, rtol=0, atol=0)
    expected = convert_original_state_dict(state_dict, golden_config(facts))
    for name, tensor in both.items():
        if name.startswith("model.backbone."):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
        elif name.startswith(("model.encoder.", "model.decoder.", "model.reference_boxes")):
            torch.testing.assert_close(tensor, expected[name].half().float(), rtol=0, atol=0)
        elif tensor.ndim > 1:
            assert not torch.equal(tensor, expected[name]), name
            assert not torch.equal(tensor, other[name]), name
    printed = capsys.readouterr().out
    initial = "actor_head.bias (1)\n  actor_head.weight (1)\n  model.feature_pyramid."
    assert f"initialised with seed 0: 26 tensors\n  {initial}" in printed
    assert "initialised with seed 1: 54 tensors\n  actor_head.bias (1)" in printed


def test_output_is_written_whole_or_not_at_all(tmp_path, golden, monkeypatch):
    facts, state_dict = golden(KEYFRAME)
    recipe = write_recipe(tmp_path / "recipe.json", golden_config(facts))
    output = tmp_path / "models" / "converted"
    arguments = ["--recipe", recipe, "--output", str(output), "--checkpoint", str(tmp_path / "published.pth")]

    torch.save({"model": state_dict | {"extra": torch.zeros(2)}}, tmp_path / "published.pth")
    with pytest.raises(ValueError, match=r"unexpected: extra \(2,\)"):
        main(arguments)
    assert not output.parent.exists()

    def fail(*_):
        raise OSError("disk full")

    torch.save({"model": state_dict}, tmp_path / "published.pth")
    with monkeypatch.context() as patch:
        patch.setattr("classquery.video_processing_classquery.ClassQueryVideoProcessor.save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            main(arguments)
    assert not list(output.parent.iterdir())

    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be a new or an empty folder, got .*converted"):
        main(arguments)
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "files",
    [[], ["--checkpoint", "a.pth", "--backbone", "b.pth"], ["--checkpoint", "a.pth", "--transformer", "b.pth"]],
)
def test_whole_detector_and_parts_exclude_each_other(tmp_path, capsys, files):
    with pytest.raises(SystemExit) as error:
        main(["--recipe", "demo", "--output", str(tmp_path / "out"), *files])

    assert error.value.code == 2
    assert "give either --checkpoint, or --backbone and --transformer or one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_command_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "classquery.convert_classquery_checkpoint"]
    arguments = ["--recipe", "demo", "--output", tmp_path / "out", "--checkpoint", tmp_path / "absent.pth"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)

    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"error: there is no file or folder {tmp_path / 'absent.pth'}"]
