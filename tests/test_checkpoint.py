"""Loading a detector: the one in the package works, and one that is not complete is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, VideoMAEConfig
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, demo_checkpoint
from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.clips import ClipCollator, KeyframeClips
from classquery.data.demo.movies import write_demo
from classquery.engine.checkpoint import CheckpointError, demo_notice, load_detector
from classquery.engine.training.evaluation import FrameScorer, clip_records


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


def test_folder_without_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="holds a configuration, but no weights: model.safetensors is missing"):
        load_detector(str(checkpoint))


def test_folder_without_configuration_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()

    with pytest.raises(CheckpointError, match="no model"):
        load_detector(str(checkpoint))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"box_refinement": "twice"}, r"not known here: \['box_refinement'\]; .* transformers is 9.1.0"),
        ({"padding": "mirrored"}, "cannot be: .*padding.* transformers is 9.1.0"),
        (
            {"backbone_config": {"model_type": "classquery_vit", "register_tokens": 4}},
            "backbone_config.register_tokens",
        ),
        ({"backbone_config": {"model_type": "classquery_mamba"}}, "classquery_mamba"),
    ],
)
def test_configuration_of_a_newer_version_is_refused(checkpoint, values, message):
    change_config(checkpoint, transformers_version="9.1.0", **values)

    with pytest.raises(CheckpointError, match=message):
        load_detector(str(checkpoint))


class Harm:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("HARM",)


def test_pickle_is_read_only_if_asked_for_and_without_its_code(checkpoint, capsys):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="are a pickle, .*allow_pickle=True"):
        load_detector(str(checkpoint))
    model, _ = load_detector(str(checkpoint), allow_pickle=True)
    assert torch.equal(model.state_dict()["actor_head.weight"], weights["actor_head.weight"])

    torch.save(weights | {"actor_head.bias": Harm()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or not complete"):
        load_detector(str(checkpoint), allow_pickle=True)
    assert "HARM" not in capsys.readouterr().out


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model .*nowhere"):
        load_detector(str(tmp_path / "nowhere"))


def test_demo_model_finds_the_people_of_a_movie_it_has_not_seen(tmp_path):
    """Its recorded frame mAP on ten movies is above 0.9; one short movie leaves room for chance."""
    data_dir = tmp_path / "data"
    write_demo(data_dir, num_train_movies=0, num_validation_movies=1, seconds_per_movie=16)
    model, processor = load_detector("demo")
    config = model.config
    clips = KeyframeClips(
        load_ava(data_dir, "validation"),
        num_labels=config.num_labels,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
    )
    batch = ClipCollator(processor)([clips[index] for index in range(len(clips))])

    with torch.no_grad():
        outputs = model.eval()(batch["pixel_values"], batch["pixel_mask"])

    assert config.id2label == load_ava_labels(data_dir)
    assert FrameScorer(config.id2label)(clip_records(processor, outputs, batch["labels"]))["frame_map_50"] > 0.75


def test_demo_model_is_small():
    assert sum(path.stat().st_size for path in Path(demo_checkpoint()).glob("*.safetensors")) < 4e6


def test_notice_is_for_the_demo_model_and_not_for_what_was_made_from_it(tmp_path):
    model, processor = load_detector("demo")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    copy, _ = load_detector(str(tmp_path))

    assert demo_notice(model) == demo_notice(copy)
    assert "(stand, walk, jump, ball on the left, " in demo_notice(model)
    with torch.no_grad():
        model.actor_head.bias[0] += 1e-3
    assert demo_notice(model) is None
    assert demo_notice(ClassQueryForVideoActionDetection(tiny_config())) is None
