"""Models of which a part waits in memory or on disk until it is needed: bit for bit the outputs of a whole one."""

import pytest
import torch
from accelerate import cpu_offload
from utils import tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration_classquery import CORRECTED


CONFIGS = {
    "released": {},
    "corrected": CORRECTED,
    "csn": {"backbone_config": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}, "num_frames": 8},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(**request.param)).eval()


def assert_same_outputs(model, expected_model):
    inputs = {name: tensor for name, tensor in tiny_batch(expected_model.config).items() if name != "labels"}
    with torch.no_grad():
        outputs, expected = model(**inputs), expected_model(**inputs)
    for name in ("logits", "pred_boxes", "actor_logits"):
        assert torch.equal(outputs[name], expected[name]), name


# Of the weights in memory: none, and as many as leave a rest.
@pytest.mark.parametrize("share", [0, 0.8])
def test_weights_on_disk_and_in_memory_give_the_same_outputs(tmp_path, model, share):
    model.save_pretrained(tmp_path)
    most = {"cpu": int(share * model.get_memory_footprint())}

    loaded = ClassQueryForVideoActionDetection.from_pretrained(
        tmp_path, device_map="auto", max_memory=most, offload_folder=tmp_path / "offload"
    )

    assert set(loaded.hf_device_map.values()) == ({"disk", "cpu"} if share else {"disk"})
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert_same_outputs(loaded, model)


def test_weights_that_come_from_memory_give_the_same_outputs(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path)

    cpu_offload(loaded, execution_device=torch.device("cpu"))

    assert all(parameter.is_meta for parameter in loaded.parameters())
    assert_same_outputs(loaded, model)
