"""VideoMAE and V-JEPA 2 as backbones: their own results at their own size, their own checkpoints, and other sizes."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
    VJEPA2Config,
    VJEPA2Model,
)
from utils import TOKEN_BACKBONES, checkpoint_activations, tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration import RecipeError, load_recipe
from classquery.conversion_classquery import load_backbone
from classquery.modeling_classquery_tokens import ClassQueryVideoMAEBackbone, ClassQueryVJEPA2Backbone


VIDEOMAE = {name: value for name, value in TOKEN_BACKBONES["videomae"].items() if name != "model_type"}
VJEPA2 = {name: value for name, value in TOKEN_BACKBONES["vjepa2"].items() if name != "model_type"}


@pytest.fixture(params=sorted(TOKEN_BACKBONES))
def model(request):
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(backbone_config=TOKEN_BACKBONES[request.param])).eval()


def as_map(tokens: torch.Tensor, *shape: int) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, shape)


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Values that tell tensors apart: at first, biases are zero and norms are one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_videomae_is_that_of_transformers_at_its_own_size(use_mean_pooling):
    original = randomize(VideoMAEModel(VideoMAEConfig(**VIDEOMAE, use_mean_pooling=use_mean_pooling)))
    backbone = ClassQueryVideoMAEBackbone(original.config).eval()
    pixel_values = torch.randn(2, 4, 3, 32, 32)

    backbone.load_state_dict(original.state_dict())

    expected = as_map(original(pixel_values).last_hidden_state, 2, 4, 4)
    assert torch.equal(backbone(pixel_values), expected)


@pytest.mark.parametrize("num_frames", [4, 2])
def test_vjepa2_is_that_of_transformers_at_its_own_size(num_frames):
    original = randomize(VJEPA2Model(VJEPA2Config(**VJEPA2)))
    backbone = ClassQueryVJEPA2Backbone(original.config).eval()
    pixel_values = torch.randn(2, num_frames, 3, 32, 32)

    backbone.encoder.load_state_dict(original.encoder.state_dict())

    expected = as_map(original(pixel_values, skip_predictor=True).last_hidden_state, num_frames // 2, 4, 4)
    assert torch.equal(backbone(pixel_values), expected)


def test_vjepa2_places_tokens_in_the_grid_of_a_smaller_frame():
    """The original is told the places of 2 x 3 tokens in its 4 x 4 grid, by the mask that its predictor uses."""
    original = randomize(VJEPA2Model(VJEPA2Config(**VJEPA2))).encoder
    backbone = ClassQueryVJEPA2Backbone(original.config).eval()
    backbone.encoder.load_state_dict(original.state_dict())
    pixel_values = torch.randn(1, 4, 3, 16, 24)

    hidden_states = original.embeddings(pixel_values)
    places = torch.arange(32).view(2, 4, 4)[:, :2, :3].reshape(1, -1)
    for layer in original.layer:
        hidden_states = layer(hidden_states, places)[0]

    assert torch.equal(backbone(pixel_values), as_map(original.layernorm(hidden_states), 2, 2, 3))


def test_vjepa2_squeezes_longer_axes_into_its_range():
    backbone = ClassQueryVJEPA2Backbone(VJEPA2Config(**VJEPA2))

    times, rows, columns = backbone._places(torch.Size((4, 4, 8)), torch.zeros(()))

    assert times.view(4, 4, 8)[:, 0, 0].tolist() == [0, 0.5, 1, 1.5]
    assert rows.view(4, 4, 8)[0, :, 0].tolist() == [0, 1, 2, 3]
    assert columns.view(4, 4, 8)[0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


def test_videomae_interpolates_its_table_for_other_sizes_and_numbers_of_frames():
    """Twice the height: the table interpolated twice as fine, so that every other mean is near the original."""
    backbone = ClassQueryVideoMAEBackbone(VideoMAEConfig(**VIDEOMAE | {"image_size": 64}))
    table = backbone.position_table.view(2, 8, 8, -1)

    from classquery.modeling_classquery_vit import interpolate_positions

    finer = interpolate_positions(backbone.position_table, (2, 8, 8), (2, 16, 8)).view(2, 8, 2, 8, -1)
    longer = interpolate_positions(backbone.position_table, (2, 8, 8), (3, 8, 8)).view(3, 8, 8, -1)

    torch.testing.assert_close(finer.mean(2)[:, 2:-2, :, -8:], table[:, 2:-2, :, -8:], rtol=0, atol=1e-2)
    torch.testing.assert_close(longer[1], table.mean(0))


def test_detector_trains_on_tokens_of_any_size(model):
    batch = tiny_batch(model.config)

    model(**batch).loss.backward()

    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not {name for name in without_gradient if "backbone" in name}
    assert model(batch["pixel_values"][:, :2]).logits.shape == (2, 1, 3, 5)


def test_saved_detector_loads_to_the_same_outputs(model, tmp_path):
    pixel_values = torch.randn(1, 4, 3, 32, 48)
    randomize(model).save_pretrained(tmp_path)

    again = AutoModel.from_pretrained(tmp_path)

    assert type(again.config.backbone_config) is type(model.config.backbone_config)
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


def test_gradient_checkpointing_changes_no_gradient(model):
    batch = tiny_batch(model.config)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        model.train()(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        checkpoint_activations(model)

    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", [VideoMAEForPreTraining, VideoMAEForVideoClassification])
def test_checkpoints_of_videomae_load_by_the_names_of_the_hub(kind, tmp_path):
    pretrained = randomize(kind(VideoMAEConfig(**VIDEOMAE, use_mean_pooling=kind is not VideoMAEForPreTraining)))
    pretrained.save_pretrained(tmp_path)
    backbone = pretrained.config.to_dict()
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=backbone)).eval()
    pixel_values = torch.randn(1, 4, 3, 32, 32)

    report = load_backbone(model, tmp_path)

    assert any("q_bias" in name for names in report.loaded.values() for name in names)
    expected = as_map(pretrained.videomae(pixel_values).last_hidden_state, 2, 4, 4)
    assert torch.equal(model.model.backbone(pixel_values), expected)


def test_checkpoint_of_vjepa2_loads_by_the_names_of_the_hub(tmp_path):
    pretrained = randomize(VJEPA2Model(VJEPA2Config(**VJEPA2)))
    pretrained.save_pretrained(tmp_path)
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=TOKEN_BACKBONES["vjepa2"])).eval()
    pixel_values = torch.randn(1, 4, 3, 32, 32)

    report = load_backbone(model, tmp_path)

    assert all(name.startswith("predictor.") for name in report.dropped)
    expected = as_map(pretrained(pixel_values, skip_predictor=True).last_hidden_state, 2, 4, 4)
    assert torch.equal(model.model.backbone(pixel_values), expected)


def test_checkpoint_of_another_size_is_refused(tmp_path):
    VideoMAEModel(VideoMAEConfig(**VIDEOMAE | {"num_hidden_layers": 1})).save_pretrained(tmp_path)
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=TOKEN_BACKBONES["videomae"]))

    with pytest.raises(ValueError, match=r"encoder\.layer\.1"):
        load_backbone(model, tmp_path)


def test_other_models_of_transformers_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="of one of the types .*vjepa2, got 'vit'"):
        tiny_config(backbone_config=ViTConfig())


def test_recipe_names_a_backbone_of_transformers(tmp_path):
    path = tmp_path / "vjepa2.json"
    path.write_text(json.dumps({"base": "ava22_vit_b", "model": {"backbone_config": {"model_type": "vjepa2"}}}))

    assert load_recipe(path).model["backbone_config"] == {"model_type": "vjepa2"}
    path.write_text(path.read_text().replace("vjepa2", "vjepa3"))
    with pytest.raises(RecipeError, match="did you mean 'vjepa2'"):
        load_recipe(path)
