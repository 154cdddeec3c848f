"""What the network computes in another order than it is written down, against its readable form."""

import math
from contextlib import nullcontext

import pytest
import torch
from reference_forms import readable
from torch.testing import assert_close
from utils import tiny_batch, tiny_config

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryModel, modeling_classquery
from classquery.configuration_classquery import CORRECTED
from classquery.modeling_classquery import ClassQueryClassAttention
from classquery.plan_classquery import ClipPlan, Padding


VIT = tiny_config().backbone_config.to_dict()
CSN = {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}
CONFIGS = {
    "released": {},
    "corrected": CORRECTED | {"backbone_config": VIT | {"position_table": "factorized"}},
    "all frames": {"output_frames": "all"},
    "all frames, corrected": CORRECTED | {"output_frames": "all"},
    "groups of classes": {"class_groups": [3, 2]},
    "a slot per frame": {"backbone_config": VIT | {"tubelet_size": 1}},
    "csn": {"backbone_config": CSN, "num_frames": 16},
}
# Sums of float32 in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(**values):
    """A detector whose outputs depend on everything, for eight frames, without dropout but in training mode."""
    torch.manual_seed(0)
    config = tiny_config(**{"num_frames": 8, "encoder_layers": 2, "dropout": 0.0, "classifier_dropout": 0.0} | values)
    model = ClassQueryForVideoActionDetection(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eval()
    return model


def outputs_and_gradients(model, **kwargs):
    """Outputs on two clips of different sizes, and gradients of a sum of them all by every parameter."""
    model.zero_grad()
    inputs = {name: tensor for name, tensor in tiny_batch(model.config).items() if name != "labels"}
    outputs = model(**inputs, **kwargs)
    total = 0
    for layer in (outputs, *outputs.auxiliary_outputs):
        for name in ("logits", "pred_boxes", "actor_logits"):
            generator = torch.Generator().manual_seed(1)
            total = total + (layer[name] * torch.randn(layer[name].shape, generator=generator)).sum()
    total.backward()
    return outputs, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(model, **kwargs):
    """Outputs and gradients equal those of the readable form."""
    outputs, gradients = outputs_and_gradients(model, **kwargs)
    with readable():
        expected, expected_gradients = outputs_and_gradients(model, **kwargs)
    for layer, expected_layer in zip(
        (outputs, *outputs.auxiliary_outputs), (expected, *expected.auxiliary_outputs), strict=True
    ):
        for name in ("logits", "pred_boxes", "actor_logits"):
            assert_close(layer[name], expected_layer[name], **TOLERANCE)
    # Gradients of weights are sums over thousands of cells, and some are zero but for rounding.
    scale = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        assert_close(
            gradient / scale, expected_gradients[name] / scale, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_outputs_and_gradients_equal_those_of_the_readable_form(values):
    assert_same(make_model(**values))


# Resampling


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_resampling_equals_sampling_on_a_grid(values, padded):
    model = ClassQueryModel(tiny_config(**{"num_frames": 8} | values))
    slots = 8 if values == CONFIGS["a slot per frame"] else 4
    shapes = [(slots, 9, 12), (slots, 4, 6), (slots, 2, 3)]
    masks = [torch.ones(2, h, w, dtype=torch.bool) for _, h, w in shapes]
    for mask, (height, width) in zip(masks, [(7, 9), (3, 5), (1, 2)], strict=True):
        mask[1, height:] = mask[1, :, width:] = False
    padding = Padding(masks) if padded else None
    plan = ClipPlan.make(model.config, shapes, 8, torch.device("cpu"), padding, every_cell=True)
    states = torch.randn(2, slots * (108 + 24 + 6), 32)
    weights, results = None, []
    for reference in (False, True):
        leaf = states.clone().requires_grad_()
        with readable("resampling") if reference else nullcontext():
            memory = model.resample(leaf, plan)
        # Beyond the real cells of a clip, both forms extrapolate something that nobody reads.
        real = masks[-2].repeat_interleave(memory.shape[1] // 2, dim=0).flatten(1)
        memory = memory * real[..., None] if padded and model.config.padding == "masked" else memory
        weights = torch.randn_like(memory) if weights is None else weights
        (memory * weights).sum().backward()
        results.append((memory, leaf.grad))

    assert_close(results[0], results[1], **TOLERANCE)


@pytest.mark.parametrize("name", ["released", "corrected", "a slot per frame"])
def test_cells_that_are_encoded_are_those_that_the_keyframe_is_read_from(name):
    model = ClassQueryModel(tiny_config(**{"num_frames": 8} | CONFIGS[name]))
    slots = 8 if name == "a slot per frame" else 4
    shapes = [(slots, 16, 20), (slots, 8, 10), (slots, 4, 5), (slots, 2, 2)]
    whole, plan = (ClipPlan.make(model.config, shapes, 8, torch.device("cpu"), every_cell=e) for e in (True, False))
    states = torch.randn(1, sum(t * h * w for t, h, w in shapes), 32).requires_grad_()
    with readable("resampling"):
        model.resample(states, whole).sum().backward()

    encoded = torch.zeros(states.shape[1], dtype=torch.bool)
    encoded[plan.read_index] = True
    # Weights of less than this are rounding of places that fall on a cell.
    read = states.grad[0].abs().amax(-1) > 1e-5
    assert len(plan.read_index) == encoded.sum() < len(encoded)
    assert torch.equal(encoded | read, encoded)
    assert (encoded & ~read).sum() <= 0.1 * read.sum()
    assert_close(model.resample(states[:, plan.read_index], plan), model.resample(states, whole), **TOLERANCE)


def test_keyframe_of_the_published_model_is_read_from_a_tenth_of_the_cells():
    counts = {}
    for columns in [(84, 42, 21, 10), (85, 43, 22, 11)]:  # 84: ViT-B at 16x256x340
        shapes = [(8, 64 // 2**level, width) for level, width in enumerate(columns)]
        plan = ClipPlan.make(ClassQueryConfig(), shapes, 16, torch.device("cpu"))
        counts[sum(map(math.prod, shapes))] = len(plan.read_index)

    # The second was counted by the gradient of grid_sample.
    assert counts == {57_088: 5_512, 58_048: 5_920}


def test_last_encoder_layer_computes_only_what_is_read_unless_its_states_are_asked_for():
    model = make_model().eval()
    queries = []
    for layer in model.model.encoder.layers:
        layer.feed_forward.register_forward_pre_hook(lambda _, inputs: queries.append(inputs[0].shape[1]))
    inputs = {name: tensor for name, tensor in tiny_batch(model.config).items() if name != "labels"}

    with torch.no_grad():
        outputs = model(**inputs)
        states = model(**inputs, output_hidden_states=True)

    num_cells = states.encoder_last_hidden_state.shape[1]
    kept = queries.pop(1)
    assert queries == [num_cells] * 3
    assert kept < num_cells / 4
    assert outputs.encoder_last_hidden_state is None
    assert_close(states.encoder_last_hidden_state, states.hidden_states[-1], rtol=0, atol=0)
    assert_close(outputs.logits, states.logits, **TOLERANCE)


@pytest.mark.slow  # Ten seconds. That the operator compiles is among the quick tests.
def test_network_compiles_as_a_whole_with_the_last_layer_where_it_is_read():
    model = make_model(decoder_layers=1, backbone_config=VIT | {"num_hidden_layers": 1}).eval()
    pixel_values = torch.randn(1, 8, 3, 32, 48)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    with torch.no_grad():
        expected = model.model(pixel_values).class_hidden_states
        compiled = torch.compile(model.model, fullgraph=True, backend=keep)(pixel_values).class_hidden_states

    assert len(graphs) == 1
    assert_close(compiled, expected, **TOLERANCE)


# Rows at a time


@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_rows_at_a_time_give_the_outputs_of_all_at_once(monkeypatch, output_frames):
    model = make_model(output_frames=output_frames).eval()
    inputs = {name: tensor for name, tensor in tiny_batch(model.config).items() if name != "labels"}
    monkeypatch.setattr(modeling_classquery, "_ROWS_AT_A_TIME", 7)
    rows = []
    model.model.encoder.layers[0].feed_forward.fc1.register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].numel() // 32)
    )

    with torch.no_grad():
        outputs = model(**inputs)
        pieces, num_rows = len(rows), sum(rows)
        with readable("rows at a time"):
            expected = model(**inputs)

    assert num_rows == rows[-1]
    assert pieces == math.ceil(num_rows / 7)
    assert_close(outputs.logits, expected.logits, **TOLERANCE)
    assert_close(outputs.pred_boxes, expected.pred_boxes, **TOLERANCE)


# Class attention


@pytest.mark.parametrize("layout", ["released", "interleaved"])
def test_class_attentions_are_those_of_the_joined_form(layout):
    model = make_model(class_attention_heads=layout, padding="masked").eval()
    inputs = {name: tensor for name, tensor in tiny_batch(model.config).items() if name != "labels"}

    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
        with readable("class attention"):
            expected = model(**inputs, output_attentions=True)

    for attention, expected_attention in zip(outputs.class_attentions, expected.class_attentions, strict=True):
        assert_close(attention, expected_attention, **TOLERANCE)


def test_dropout_of_the_positions_attended_to_is_drawn_for_each_class():
    attention = ClassQueryClassAttention(tiny_config(dropout=0.5))
    shared = torch.full((2, 2, 1, 1000), 1 / 1000)

    dropped = attention.train()._drop_per_class(shared, num_labels=3)

    assert dropped.shape == (2, 2, 3, 1000)
    assert_close(dropped.sum(-1), torch.ones(2, 2, 3), rtol=0, atol=0.2)
    # Independent draws of two classes agree in half of the cells.
    agreement = ((dropped[:, :, 0] > 0) == (dropped[:, :, 1] > 0)).float().mean()
    assert 0.4 < agreement < 0.6
    assert attention.eval()._drop_per_class(shared, num_labels=3) is shared


def test_actors_draw_the_dropout_of_their_first_class_queries_for_themselves():
    layer = make_model(dropout=0.5).model.decoder.classifying_layers[0]
    queries = torch.randn(1, 5, 32)

    dropped, whole = layer._attend_to_classes(queries, 4), layer.eval()._attend_to_classes(queries, 4)

    assert (dropped[1:] - dropped[:1]).abs().amax((1, 2)).min() > 0.1
    assert_close(whole[1:], whole[:1].expand(3, -1, -1), rtol=0, atol=0)
