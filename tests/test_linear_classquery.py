"""Linear layers as oneDNN computes them: the same numbers, and only where nothing else depends on them."""

import pytest
import torch
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, linear_classquery
from classquery.linear_classquery import ClassQueryLinear


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN was called."""
    if linear_classquery._ONEDNN_LINEAR is None:
        pytest.skip("PyTorch was built without oneDNN")
    calls, operator = [], linear_classquery._ONEDNN_LINEAR
    monkeypatch.setattr(linear_classquery, "_ONEDNN_LINEAR", lambda *args: calls.append(args) or operator(*args))
    return calls


@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 5, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_inference_computes_what_training_does(calls, shape, bias):
    layer, states = ClassQueryLinear(24, 10, bias=bias), torch.randn(*shape)

    expected = layer(states)
    assert not calls
    with torch.no_grad():
        result = layer(states)

    assert len(calls) == 1
    # float32: sums of 24 products in another order.
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_other_precisions_are_left_to_pytorch(calls):
    layer, states = ClassQueryLinear(24, 10), torch.randn(7, 24)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(states).dtype == torch.bfloat16
        assert layer.double()(states.double()).dtype == torch.float64

    assert not calls


def test_backbone_and_transformer_are_made_of_them():
    model = ClassQueryForVideoActionDetection(tiny_config())
    parts = (model.model.backbone, model.model.encoder, model.model.decoder)

    assert {type(m) for part in parts for m in part.modules() if isinstance(m, torch.nn.Linear)} == {ClassQueryLinear}
