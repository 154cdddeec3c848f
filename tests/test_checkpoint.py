"""Loading a detector: the one in the package works, and one that is not complete is refused."""

import json

import pytest
from transformers import AutoConfig, VideoMAEConfig
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.engine.checkpoint import CheckpointError, load_detector


@pytest.fixture
def checkpoint(tmp_path):
    ClassQueryForVideoActionDetection(tiny_config()).save_pretrained(tmp_path)
    ClassQueryVideoProcessor(size={"shortest_edge": 40}).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_saved_model_and_processor_are_loaded(checkpoint):
    model, processor = load_detector(str(checkpoint))

    assert model.config.num_queries == 3
    assert processor.size["shortest_edge"] == 40


def test_missing_weights_are_refused(checkpoint):
    change_config(checkpoint, encoder_layers=2)

    with pytest.raises(CheckpointError, match=r"do not fit its config.json: 16 missing, as model.encoder.layers.1"):
        load_detector(str(checkpoint))


def test_left_over_weights_are_refused(checkpoint):
    change_config(checkpoint, decoder_layers=1)

    with pytest.raises(CheckpointError, match=r"\d+ unexpected, as model.decoder"):
        load_detector(str(checkpoint))


def test_weights_of_another_shape_are_refused(checkpoint):
    change_config(checkpoint, num_queries=4)

    with pytest.raises(CheckpointError, match="1 mismatched, as .*reference_boxes"):
        load_detector(str(checkpoint))


def test_truncated_weights_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match="damaged or not complete"):
        load_detector(str(checkpoint))


def test_other_models_are_refused(tmp_path):
    VideoMAEConfig().save_pretrained(tmp_path)

    assert AutoConfig.from_pretrained(tmp_path).model_type == "videomae"
    with pytest.raises(CheckpointError, match="of type 'videomae', not 'classquery'"):
        load_detector(str(tmp_path))


def test_missing_folder_raises(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_detector(str(tmp_path / "nowhere"))
