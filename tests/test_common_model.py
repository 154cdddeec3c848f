"""What every model of transformers has to do, asked of this one: states, saving, loading, compiling, training."""

import copy
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig
from utils import TOKEN_BACKBONES, checkpoint_activations, tiny_batch, tiny_config

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryModel
from classquery.modeling_classquery import ClassQueryDetectionOutput


pytestmark = pytest.mark.usefixtures("one_thread")

# The smallest network of each kind.
KINDS = {
    "vit": {},
    "vit_all_frames": {"output_frames": "all"},
    "csn": {"backbone_config": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}},
    "videomae": {"backbone_config": TOKEN_BACKBONES["videomae"]},
    "per_class": {"class_readout": "per_class", "padding": "masked"},
}

OF_FILES = ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(**KINDS[request.param])).eval()


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config()).eval()


def inputs_of(config: ClassQueryConfig) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_batch(config).items() if name != "labels"}


def values_of(config: PreTrainedConfig) -> dict:
    """All values of a configuration and of the one in it, without what says where it was read or written."""
    values = {name: value for name, value in config.to_dict().items() if name not in OF_FILES}
    if hasattr(config, "backbone_config"):
        values["backbone_config"] = values_of(config.backbone_config)
    return values


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Outputs


def test_forward_names_its_inputs_as_the_hub_does(model):
    assert list(inspect.signature(model.forward).parameters)[:3] == ["pixel_values", "pixel_mask", "labels"]
    assert model.main_input_name == "pixel_values"


def test_evaluation_gives_the_same_outputs_again_and_training_does_not(tiny_model):
    inputs = inputs_of(tiny_model.config)
    with torch.no_grad():
        first, second = tiny_model(**inputs), tiny_model(**inputs)
        tiny_model.train()
        with_dropout = [tiny_model(**inputs).logits for _ in range(2)]

    assert_same(dict(first), dict(second))
    assert not torch.equal(*with_dropout)


def test_tuple_holds_what_the_output_does_in_its_order(model):
    batch = tiny_batch(model.config)
    options = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        outputs = model(**batch, **options)
        as_tuple = model(**batch, **options, return_dict=False)

    assert isinstance(outputs, ClassQueryDetectionOutput)
    assert list(outputs.keys())[:2] == ["loss", "loss_dict"]
    assert_same(as_tuple, outputs.to_tuple())


def test_states_and_attentions_have_their_shapes_asked_in_the_call_or_in_the_configuration(model):
    config = model.config
    inputs = inputs_of(config)
    asked = copy.deepcopy(model)
    asked.set_attn_implementation("eager")
    asked.config.output_attentions = asked.config.output_hidden_states = True
    with torch.no_grad():
        plain = model(**inputs)
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        by_configuration = asked(**inputs)

    assert "class_attentions" not in plain
    assert "hidden_states" not in plain
    assert len(outputs.hidden_states) == config.encoder_layers + 1
    batch_size, num_cells, width = outputs.encoder_last_hidden_state.shape
    assert (batch_size, width) == (2, config.d_model)
    assert {tuple(state.shape) for state in outputs.hidden_states} == {(2, num_cells, config.d_model)}
    assert_same(outputs.hidden_states[-1], outputs.encoder_last_hidden_state)
    assert len(outputs.class_attentions) == config.decoder_layers
    for attention in outputs.class_attentions:
        expected = (2, config.num_output_frames, config.num_queries, config.num_labels, config.decoder_attention_heads)
        assert attention.shape[:5] == expected
        torch.testing.assert_close(attention.sum((-2, -1)), torch.ones(expected))
    assert [len(by_configuration[name]) for name in ("hidden_states", "class_attentions")] == [
        len(outputs[name]) for name in ("hidden_states", "class_attentions")
    ]


def test_gradients_reach_the_states_that_are_returned():
    # The released readout, a mean of what was normalised, has no gradient before it is trained.
    model = ClassQueryForVideoActionDetection(tiny_config(class_readout="per_class")).eval()
    states = model(**inputs_of(model.config), output_hidden_states=True)
    for tensor in states.hidden_states:
        tensor.retain_grad()

    states.logits.flatten()[0].backward()

    assert all(tensor.grad.abs().sum() > 0 for tensor in states.hidden_states)


def test_a_clip_has_the_outputs_that_it_has_in_a_batch(model):
    pixel_values = torch.randn(3, 4, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model(pixel_values)
        alone = [model(clip[None]) for clip in pixel_values]

    for name in ("logits", "pred_boxes", "actor_logits"):
        # Kernels sum in another order for other batch sizes.
        torch.testing.assert_close(torch.cat([one[name] for one in alone]), together[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (65, 47)])
def test_one_model_takes_frames_of_any_size(model, size):
    with torch.no_grad():
        outputs = model(torch.randn(1, 4, 3, *size))

    assert outputs.logits.shape == (1, model.config.num_output_frames, 3, 5)
    assert outputs.pred_boxes.isfinite().all()


# Saving and loading


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"max_shard_size": "50KB"}, "model-00001-of-*.safetensors"),
        ({"variant": "fp16"}, "model.fp16.safetensors"),
        ({"variant": "fp16", "max_shard_size": "50KB"}, "model.fp16-00001-of-*.safetensors"),
    ],
    ids=["sharded", "variant", "sharded variant"],
)
def test_sharded_and_named_weights_load_to_the_same_model(tiny_model, tmp_path, options, weights):
    tiny_model.save_pretrained(tmp_path, **options)

    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, variant=options.get("variant"))

    assert list(tmp_path.glob(weights))
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(state_of(loaded), state_of(tiny_model))


def test_saving_again_writes_the_same_files(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    ClassQueryForVideoActionDetection.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")

    first, second = (ClassQueryConfig.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert values_of(second) == values_of(first)
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")))


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_weights_come_back_in_the_type_that_is_asked_for(tiny_model, tmp_path, dtype, expected):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)

    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, dtype=dtype)

    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.dtype == loaded.config.dtype == expected
    with torch.no_grad():
        assert loaded(**inputs_of(loaded.config)).logits.dtype == expected


def test_body_and_detector_load_each_others_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "detector")
    body = ClassQueryModel.from_pretrained(tmp_path / "detector")
    body.save_pretrained(tmp_path / "body")
    detector, info = ClassQueryForVideoActionDetection.from_pretrained(tmp_path / "body", output_loading_info=True)

    assert_same(state_of(body), state_of(model.model))
    assert_same(state_of(detector.model), state_of(model.model))
    assert info["missing_keys"] == {name for name in model.state_dict() if not name.startswith("model.")}
    assert not info["unexpected_keys"]


def test_every_weight_that_a_file_lacks_is_initialised_as_in_a_new_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    save_file({"of_something_else": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded, info = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, output_loading_info=True)

    assert info["missing_keys"] == set(model.state_dict())
    assert set(info["unexpected_keys"]) == {"of_something_else"}
    assert_begun_as(loaded, model.state_dict())


@pytest.mark.parametrize("kind", ["learned", "text"])
def test_parts_that_a_file_lacks_are_initialised_as_in_a_new_model(kind, tmp_path):
    """Of most modules, the file has what is not in their parts: transformers takes these for loaded as a whole."""
    values = {"text": {"class_queries": "text", "text_embedding_size": 16, "class_residual": True}, "learned": {}}
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(class_readout="per_class", **values[kind]))
    model.save_pretrained(tmp_path)
    kept = {"model.encoder.level_embed", "model.reference_boxes", "model.decoder.class_queries", "class_readout_bias"}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in kept}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded, info = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, output_loading_info=True)

    assert info["missing_keys"] == model.state_dict().keys() - kept.keys()
    assert_begun_as(loaded, model.state_dict())


def assert_begun_as(loaded: ClassQueryForVideoActionDetection, new: dict[str, torch.Tensor]) -> None:
    """Compare weights with those of a new model, of which many are drawn."""
    for name, tensor in loaded.state_dict().items():
        assert tensor.isfinite().all(), name
        values, expected = tensor.float(), new[name].float()
        if values.unique().numel() == 1:
            # Norms, biases and what they have counted.
            assert_same(values, expected)
        else:
            # Drawn again from the same distribution: three errors of the mean, and few numbers spread by chance.
            tolerance = 3 * (values.std() + expected.std()).item() / values.numel() ** 0.5
            torch.testing.assert_close(values.mean(), expected.mean(), rtol=0, atol=tolerance)
            torch.testing.assert_close(values.std(), expected.std(), rtol=0.6, atol=0)


def test_weights_can_be_given_without_a_file(tiny_model):
    state = state_of(tiny_model)

    loaded = ClassQueryForVideoActionDetection.from_pretrained(None, config=tiny_model.config, state_dict=state)

    assert_same(state_of(loaded), state)


def test_no_weight_is_tied_or_left_out_of_the_state(model):
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]

    assert not model._tied_weights_keys
    assert len(set(pointers)) == len(pointers)
    assert {name for name, _ in model.named_parameters()} <= set(model.state_dict())


def test_a_copy_computes_the_same_and_shares_nothing(tiny_model):
    inputs = inputs_of(tiny_model.config)
    with torch.no_grad():
        expected = dict(tiny_model(**inputs))
        copied = copy.deepcopy(tiny_model)
        assert_same(dict(copied(**inputs)), expected)
        for parameter in copied.parameters():
            parameter.zero_()
        assert_same(dict(tiny_model(**inputs)), expected)


# Configuration


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_survives_a_file_and_a_dictionary(kind, tmp_path):
    config = tiny_config(**KINDS[kind])
    config.save_pretrained(tmp_path)

    for again in (
        ClassQueryConfig.from_pretrained(tmp_path),
        ClassQueryConfig.from_dict(config.to_dict()),
        ClassQueryConfig(**json.loads(config.to_json_string(use_diff=False))),
    ):
        assert values_of(again) == values_of(config)
    backbone = type(config.backbone_config).from_pretrained(tmp_path)
    assert values_of(backbone) == values_of(config.backbone_config)


def test_number_of_labels_makes_their_names():
    config = tiny_config(num_labels=7)

    assert len(config.id2label) == len(config.label2id) == config.num_labels == 7
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3


# Training and compiling


def test_recomputed_activations_change_no_gradient(model):
    trained = copy.deepcopy(model).train()
    batch = tiny_batch(trained.config)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(trained)
        trained.zero_grad()
        torch.manual_seed(0)
        trained(**batch).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in trained.named_parameters()})

    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_computes_the_same(model, backend):
    inputs = inputs_of(model.config)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        expected, outputs = model(**inputs), compiled(**inputs)

    for name in ("logits", "pred_boxes", "actor_logits"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
