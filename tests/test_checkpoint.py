"""Loading a detector: the one in the package works, and one that is not complete is refused."""

import json
from pathlib import Path

import pytest
import torch
from mutations import try_mutations
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(checkpoint, dtype):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.encoder.level_embed"] = tensors["model.encoder.level_embed"].to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="1 tensors are no floating-point numbers, as model.encoder.level_embed"):
        load_detector(str(checkpoint))


def test_index_of_no_names_is_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    for name in (5, None):
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="no index of files of weights"):
            load_detector(str(checkpoint))


def test_classes_are_in_order_and_found_by_their_names_whatever_the_file_says(checkpoint):
    names = {str(index): f"class {index}" for index in range(5)}
    shuffled = dict(sorted(names.items(), reverse=True))
    change_config(checkpoint, id2label=shuffled, label2id={"class 0": 3, "gone": 0})

    model, _ = load_detector(str(checkpoint))

    assert list(model.config.id2label.values()) == list(names.values())
    assert model.config.label2id == {name: int(index) for index, name in names.items()}


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 10**9}, "`num_frames` must be at most"),
        ({"encoder_layers": 10**9}, "`encoder_layers` must be at most 256"),
        ({"decoder_layers": 10**30}, "`decoder_layers` must be at most 256"),
        ({"num_queries": 10**9}, "`num_queries` must be at most"),
        ({"encoder_ffn_dim": 2**18, "encoder_layers": 8}, "describes a model of .* numbers, but its weights have"),
        ({"num_labels": 10**9, "id2label": None}, "`num_labels` must be a whole number"),
        ({"backbone_config": {"model_type": "classquery_vit", "num_hidden_layers": 10**9}}, "at most 256"),
        ({"backbone_config": {"model_type": "classquery_vit", "position_grid": [10**5, 10**5]}}, "beyond any memory"),
        (
            {"backbone_config": {"model_type": "classquery_csn", "depths": [3, 8, 10**9, 3]}},
            "`depths` must be at most",
        ),
        ({"backbone_config": {"model_type": "videomae", "image_size": 2**17}}, "beyond any memory"),
        ({"backbone_config": "text"}, "cannot be"),
        ({"id2label": ["a", "b"]}, "cannot be"),
        ({"id2label": {"0": "a", "2": "b"}}, "`id2label` must name the classes 0 to 1, got {0: 'a', 2: 'b'}"),
        ({"id2label": {"0": "a", "1": "a"}}, "classes must have different names"),
        ({"id2label": {"0": "a", "1": None}}, "classes must have different names"),
        ({"dtype": "text"}, "cannot be"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_any_memory_is_taken(checkpoint, values, message):
    change_config(checkpoint, **values)

    with pytest.raises(CheckpointError, match=message):
        load_detector(str(checkpoint))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"shortest_edge": -40}}, "`size` of the processor must be sides from 1"),
        ({"size": {"shortest_edge": "forty"}}, "`size` of the processor must be sides from 1"),
        ({"size": {"height": 10**9, "width": 32}}, "`size` of the processor must be sides from 1"),
        ({"size": "text"}, "cannot be"),
        ({"image_mean": "text"}, "`image_mean` of the processor must be"),
        ({"image_std": [0.2, 0.0, 0.2]}, "`image_std` of the processor must be"),
        ({"rescale_factor": None}, "`rescale_factor` of the processor must be a number"),
        ({"score_threshold": -1}, r"`score_threshold` of the processor must be a score in \[0, 1\]"),
        ({"class_thresholds": {"walk": "low"}}, r"`walk` of the processor must be a score in \[0, 1\]"),
    ],
)
def test_processors_that_cannot_work_are_refused(checkpoint, values, message):
    path = checkpoint / "video_preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

    with pytest.raises(CheckpointError, match=message):
        load_detector(str(checkpoint))


def test_missing_processor_is_named(checkpoint):
    (checkpoint / "video_preprocessor_config.json").unlink()

    with pytest.raises(CheckpointError, match="video_preprocessor_config.json"):
        load_detector(str(checkpoint))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_taken_off_and_named(checkpoint, tmp_path_factory, caplog, prefix):
    weights = load_file(checkpoint / "model.safetensors")
    wrapped = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    save_file(wrapped, checkpoint / "model.safetensors", metadata={"format": "pt"})

    model, _ = load_detector(str(checkpoint))

    assert f"begin with {prefix!r}, which was taken off" in caplog.text
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    # Saved again, it is like any other.
    again = tmp_path_factory.mktemp("again")
    model.save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == weights.keys()


def test_a_missing_part_of_the_weights_is_named(checkpoint):
    model = ClassQueryForVideoActionDetection.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="100KB")
    load_detector(str(checkpoint))
    part = sorted(checkpoint.glob("model-*.safetensors"))[1]
    part.unlink()

    with pytest.raises(CheckpointError, match=f"lacks 1 of .* files of weights, as {part.name}"):
        load_detector(str(checkpoint))


@pytest.mark.parametrize("name", ["config.json", "video_preprocessor_config.json", "model.safetensors"])
def test_damaged_files_are_refused_or_read(checkpoint, name):
    def check(loaded):
        model, processor = loaded
        assert model.state_dict().keys() == names
        assert processor.size["shortest_edge"] >= 1

    names = ClassQueryForVideoActionDetection(tiny_config()).state_dict().keys()

    outcomes = try_mutations(
        lambda path: load_detector(str(path.parent)), checkpoint / name, CheckpointError, count=16, check=check
    )

    assert outcomes["refused"] > 0


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = ClassQueryForVideoActionDetection(tiny_config())
    with torch.no_grad():
        model.actor_head.weight[1, 2] = value
    model.save_pretrained(tmp_path)
    ClassQueryVideoProcessor().save_pretrained(tmp_path)

    message = r"1 of \d+ tensors of the checkpoint are not finite, as actor_head.weight"
    with pytest.raises(CheckpointError, match=message):
        load_detector(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        ClassQueryForVideoActionDetection.from_pretrained(tmp_path)
