"""The run script from start to end, in a process of its own and in this one, with a network of 10 000 parameters."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file
from text_towers import save_tower
from tiny_training import tiny_trainer
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.annotations.registry import load_action_labels
from classquery.data.demo.movies import write_demo_movie
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.video.reader import VideoReadError
from classquery.engine.run.main import run
from classquery.engine.run.tasks import SCRIPT as SCRIPT_TASK
from classquery.engine.run.tasks import Task
from classquery.engine.run.training import fit_and_save_thresholds
from classquery.engine.training.evaluation import report_errors


SCRIPT = Path(__file__).parent.parent / "run_action_detection.py"


def run_script(*arguments: str | Path, expect_success: bool = True) -> str:
    """Run the script and return what it printed; errors must not show a traceback."""
    command = [sys.executable, SCRIPT, *arguments, "--disable_tqdm", "True"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode == 0) == expect_success, result.stderr[-3000:]
    if not expect_success:
        assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file for a tiny network on a given data set in AVA's layout."""
    config = tiny_config()
    model = {
        name: getattr(config, name)
        for name in (
            "num_frames",
            "num_queries",
            "d_model",
            "encoder_layers",
            "decoder_layers",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "encoder_n_points",
        )
    }
    backbone = config.backbone_config
    model["backbone_config"] = {
        name: getattr(backbone, name)
        for name in (
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "patch_size",
            "position_grid",
        )
    }
    path = tmp_path_factory.mktemp("recipe") / "tiny.json"
    path.write_text(
        json.dumps(
            {
                "model": model,
                "processor": {"size": {"shortest_edge": 32}},
                "data": {"dataset": "ava", "resize_shortest_edge": 36},
                "training": {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True},
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def trained(demo_dir, recipe, tmp_path_factory):
    """The output folder of a run that trains, evaluates and detects in a video."""
    output = tmp_path_factory.mktemp("run") / "out"
    video = write_demo_movie(output.parent, "validation", 0, seconds_per_movie=2)
    run_script(
        *("--recipe", recipe, "--data_dir", demo_dir, "--output_dir", output, "--videos", video),
        *("--do_train", "--do_eval", "--do_predict", "--actor_threshold", "0", "--score_threshold", "0"),
        *("--attention", "watch a jump", "--logging_steps", "1", "--report"),
    )
    return output


def test_run_leaves_the_files_of_a_hugging_face_script(trained):
    results = json.loads((trained / "all_results.json").read_text())

    assert 0 <= results["eval_frame_map_50"] <= 1
    assert results["train_loss"] > 0
    for name in ("trainer_state.json", "config.json", "model.safetensors", "eval_predictions.parquet"):
        assert (trained / name).stat().st_size > 0, name
    assert (trained / "training_curve.png").stat().st_size > 0
    assert sorted(path.name for path in (trained / "report").iterdir()) == [
        "analysis.json",
        "report.html",
        "report.png",
    ]


def test_saved_model_and_processor_load_to_a_working_detector(trained):
    from transformers import AutoModel, AutoVideoProcessor

    model, processor = AutoModel.from_pretrained(trained), AutoVideoProcessor.from_pretrained(trained)

    outputs = model(**processor(torch.zeros(4, 3, 96, 128, dtype=torch.uint8)))

    assert isinstance(model, ClassQueryForVideoActionDetection)
    assert isinstance(processor, ClassQueryVideoProcessor)
    assert outputs.logits.shape == (1, 1, 3, 8)
    assert model.config.id2label[7] == "watch a jump"


def test_prediction_is_written_as_json_and_as_a_video(trained):
    (folder,) = (path for path in (trained / "predictions").iterdir() if path.is_dir())
    detections = json.loads((folder / "detections.json").read_text())

    assert (folder / "preview.png").stat().st_size > 0
    assert len(detections["keyframes"]) == 2
    assert len(detections["keyframes"][0]["actors"]) == 3
    with av.open(str(folder / "annotated.mp4")) as container:
        assert container.streams.video[0].codec.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 30


def run_here(output: Path, *arguments: str | Path, task: Task = SCRIPT_TASK) -> dict:
    """Run in this process, because one for each test would take ten times as long, and return the results."""
    assert run([*map(str, arguments), "--output_dir", str(output), "--disable_tqdm", "True"], task) == 0
    return json.loads((output / "all_results.json").read_text())


def test_trained_model_is_evaluated_to_the_same_metrics(trained, demo_dir, recipe, tmp_path):
    again = run_here(
        *(tmp_path, "--recipe", recipe, "--data_dir", demo_dir),
        *("--model_name_or_path", trained, "--do_eval"),
    )

    first = json.loads((trained / "all_results.json").read_text())
    assert again["eval_frame_map_50"] == pytest.approx(first["eval_frame_map_50"], abs=1e-6)
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "dmeo", "--do_train"], "did you mean 'demo'"),
        (["--dataset", "ava", "--model", "demo", "--do_eval"], "--data_dir is needed"),
        (["--dataset", "custom", "--data_dir", "nowhere", "--model", "demo", "--do_eval"], "nowhere"),
        (["--do_predict", "--model_name_or_path", "demo", "--videos", "missing.mp4"], "missing.mp4"),
        (["--do_predict", "--model_name_or_path", "/nowhere/model"], "no model '/nowhere/model'"),
        (["--do_predict", "--model_name_or_path", "demo", "--attention", "wlak"], "walk"),
        (["--dataset", "ava", "--data_dir", ".", "--model", "demo", "--do_eval", "--use_cpu", "--bf16"], "need a GPU"),
        (["--do_predict", "--classes", "walk"], "--show_classes names those to report"),
        (
            ["--do_train", "--per_device_eval_batch_size", "0"],
            "--per_device_eval_batch_size must be at least 1, got 0",
        ),
        (["--do_train", "--learning_rate", "nan"], "--learning_rate must be at least 0, got nan"),
        (["--do_train", "--max_steps", "0"], "--max_steps must be at least 1, or -1"),
        (["--do_train", "--num_train_epochs", "0"], "--num_train_epochs must be more than 0"),
        (["--do_train", "--timestamp_offset", "inf"], "--timestamp_offset must be a finite number"),
        (["--do_eval", "--model", "demo", "--classes=replace"], "--show_classes names those to report"),
        (["--do_predict", "--model_name_or_path", "demo", "--vid", "x.mp4"], "--vid"),
        (["--do_predict", "--classes_text", "a person waves"], "learned a query for each of its classes"),
        (["--do_predict", "--model_name_or_path", "demo", "--keyframes_per_second", "0"], "keyframes_per_second"),
    ],
)
def test_wrong_arguments_raise_what_the_script_shows(arguments, message, tmp_path):
    with pytest.raises((OSError, ValueError, VideoReadError), match=message):
        run([*arguments, "--output_dir", str(tmp_path / "out")], SCRIPT_TASK)
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--do_train", "--model_name_or_path", "demo", "--backbone_checkpoint", "x.pth"], "start a new model"),
        (["--do_train", "--classes", "add"], "change a trained model"),
        (["--do_train", "--lora_rank", "2"], "change a trained model"),
        (["--do_train", "--classes_text", "a person waves"], "is for detection"),
        (["--do_eval"], "--do_eval scores a trained model: give --model_name_or_path"),
        (["--do_eval", "--model", "demo", "--resume_from_checkpoint", "true"], "goes on with --do_train"),
        (["--do_train", "--supervised_frames", "2"], "in all frames, which demo does not"),
        (["--do_train", "--dataset", "cusom"], "invalid choice: 'cusom'"),
        (["--do_predict", "--show_classes", "walk", __file__], "give videos before it"),
        (["--do_predict", "--classes_text", "a person waves", "videos/*.mp4"], "give videos before it"),
        (
            ["--do_train", "--model_name_or_path", "demo", "--lora_rank", "2", "--freeze", "backbone"],
            "leave --freeze out",
        ),
    ],
)
def test_incomplete_command_lines_end_with_usage(capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(arguments, SCRIPT_TASK)
    assert message in capsys.readouterr().err


def test_custom_keyframes_then_cvat_tracks_with_other_classes(recipe, two_movies, tmp_path):
    """Train on a csv, streamed; fine-tune on keyframes of tracks, the classes replaced; and train on tubes."""
    keyframes, tracks = tmp_path / "keyframes", tmp_path / "tracks"
    for folder in (keyframes, tracks):
        folder.mkdir()
        (folder / "videos").symlink_to(two_movies)
    meta = "<original_size><width>128</width><height>96</height></original_size>"
    for split, video in (("train", "demo_val_000"), ("validation", "demo_val_001")):
        rows = [f"{video}.mp4,{second},0.1,0.2,0.5,0.9,{label}" for second in (0.5, 1.5) for label in ("walk", "sit")]
        (keyframes / f"{split}.csv").write_text("\n".join(["video,timestamp,x1,y1,x2,y2,label", *rows]))
        box = '<box frame="{}" outside="{}" xtl="10" ytl="20" xbr="60" ybr="90" />'
        track = f'<track id="0" label="wave">{box.format(2, 0)}{box.format(29, 1)}</track>'
        meta_of_video = f"<meta><task>{meta}<source>{video}.mp4</source></task></meta>"
        (tracks / f"{split}.xml").write_text(f"<annotations>{meta_of_video}{track}</annotations>")
    backend = "decord" if importlib.util.find_spec("decord") else "pyav"
    common = ("--dataset", "custom", "--do_train", "--do_eval", "--max_steps", "1", "--on_error", "skip")
    common += ("--video_backend", backend)

    first = run_here(
        *(tmp_path / "one", "--recipe", recipe, "--data_dir", keyframes, "--streaming", "true"),
        *common,
    )
    second = run_here(
        *(tmp_path / "two", "--data_dir", tracks, "--classes", "replace", "--num_train_epochs", "1"),
        *("--model_name_or_path", tmp_path / "one", "--keyframes_per_second", "5", *common),
    )
    tubes = json.loads(recipe.read_text())
    tubes["model"] |= {"frame_stride": 1, "output_frames": "all"}
    (tmp_path / "tubes.json").write_text(json.dumps(tubes))
    third = run_here(
        *(tmp_path / "three", "--recipe", tmp_path / "tubes.json", "--data_dir", tracks, *common),
    )

    labels = [json.loads((tmp_path / run / "config.json").read_text())["id2label"] for run in ("one", "two", "three")]
    assert labels == [{"0": "sit", "1": "walk"}, {"0": "wave"}, {"0": "wave"}]
    for results in (first, second, third):
        assert 0 <= results["eval_frame_map_50"] <= 1
    assert {"eval_video_map_20", "eval_video_map_50"} < third.keys()
    with pytest.raises(ValueError, match="only keyframes are annotated"):
        run_here(
            *(tmp_path / "four", "--recipe", tmp_path / "tubes.json", "--data_dir", keyframes),
            *common,
        )


@pytest.mark.slow
def test_two_stages_on_tubes(recipe, tmp_path):
    """A detector of all frames, trained on tubes; then another backbone, with its encoder and decoder."""
    data = tmp_path / "data"
    write_demo_tubes(data, layout="jhmdb_21", num_train_videos=4, num_validation_videos=2)
    stage_one = json.loads(recipe.read_text())
    stage_one["model"] |= {"frame_stride": 1, "output_frames": "all", "score_with_actor": True}
    stage_one["data"] |= {"dataset": "jhmdb_21", "fold": 1, "video_map_protocol": "classquery_jhmdb"}
    (tmp_path / "one.json").write_text(json.dumps(stage_one))
    stage_two = {"base": str(tmp_path / "one.json"), "model": {"backbone_config": {"num_hidden_layers": 1}}}
    (tmp_path / "two.json").write_text(json.dumps(stage_two))

    run_script(
        *("--recipe", tmp_path / "one.json", "--data_dir", data, "--output_dir", tmp_path / "one", "--do_train"),
    )
    output = run_script(
        *("--recipe", tmp_path / "two.json", "--data_dir", data, "--output_dir", tmp_path / "two"),
        *("--transformer_checkpoint", tmp_path / "one", "--max_steps", "1", "--learning_rate", "0"),
        *("--do_train", "--do_eval", "--freeze", "backbone"),
    )

    assert "took" in output
    assert "training.learning_rate" not in output  # Only what the recipe says is laid out.
    assert "training.max_steps" in output
    assert "changed, recipe: 2" in output
    results = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert {"eval_frame_map_50", "eval_video_map_20", "eval_video_map_50"} < results.keys()
    one, two = (load_file(tmp_path / stage / "model.safetensors") for stage in ("one", "two"))
    torch.testing.assert_close(two["model.decoder.class_queries"], one["model.decoder.class_queries"])
    assert not torch.equal(two["actor_head.weight"], one["actor_head.weight"])


def test_classes_are_added_to_a_trained_model_and_trained_alone(trained, demo_dir, recipe, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(demo_dir, data)
    with next((data / "annotations").glob("*.pbtxt")).open("a") as file:
        file.write('label { name: "sleep" label_id: 9 label_type: PERSON_MOVEMENT }\n')

    run_here(
        *(tmp_path / "out", "--recipe", recipe, "--data_dir", data),
        *("--model_name_or_path", trained, "--do_train", "--classes", "add"),
        *("--freeze", "old_classes", "--weight_decay", "0.1", "--learning_rate_width", "256"),
    )

    # What the trainer says is heard as well.
    assert "belongs to a width of 256" in caplog.text
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.decoder.class_queries"}
    torch.testing.assert_close(after["model.decoder.class_queries"][:8], before["model.decoder.class_queries"])


def test_classes_in_words_are_trained_without_some_and_detect_others(demo_dir, recipe, tmp_path):
    labels = load_action_labels("ava", demo_dir).values()
    (tmp_path / "words.json").write_text(json.dumps({label: f"a person {label}s" for label in labels}))
    tower, novel = save_tower(tmp_path / "tower"), list(labels)[1]
    video = write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=2)
    new = ("--class_descriptions", tmp_path / "words.json", "--text_encoder", tower, "--novel_classes", novel)

    results = run_here(tmp_path / "out", "--recipe", recipe, "--data_dir", demo_dir, "--do_train", "--do_eval", *new)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["untrained_classes"] == [novel]
    assert config["text_encoder"] == tower
    scores = [results[f"eval_frame_map_50_{part}"] for part in ("base", "novel", "harmonic")]
    assert scores[1] == results[f"eval_frame_ap_50/{novel}"]
    assert novel in (tmp_path / "out" / "README.md").read_text().partition("## Limits")[2]

    detecting = ("--model_name_or_path", tmp_path / "out", "--do_predict", "--videos", video, "--class_chunk", "1")
    thresholds = ("--actor_threshold", "0", "--score_threshold", "0")
    sentences = ("--classes_text", next(iter(labels)), "a person sits down")
    arguments = map(str, [*detecting, *thresholds, *sentences, "--output_dir", tmp_path / "out"])
    assert run([*arguments, "--disable_tqdm", "True"], SCRIPT_TASK) == 0

    detections = json.loads(next((tmp_path / "out" / "predictions").glob("*/detections.json")).read_text())
    assert detections["untrained_classes"] == ["a person sits down"]
    found = {action["label"] for frame in detections["keyframes"] for a in frame["actors"] for action in a["actions"]}
    assert found == {next(iter(labels)), "a person sits down"}


@pytest.mark.slow
def test_model_that_knows_other_classes_is_refused(demo_dir, recipe, tmp_path):
    model = tmp_path / "model"
    ClassQueryForVideoActionDetection(tiny_config()).save_pretrained(model)
    ClassQueryVideoProcessor().save_pretrained(model)

    output = run_script(
        *("--recipe", recipe, "--data_dir", demo_dir, "--output_dir", tmp_path / "out"),
        *("--model_name_or_path", model, "--do_eval"),
        expect_success=False,
    )

    assert "error: the classes of the model are not those of the data" in output
    assert not (tmp_path / "out").exists()


def test_thresholds_are_saved_with_the_model_and_shown(demo_dir, tmp_path):
    trainer = tiny_trainer(demo_dir, tmp_path)
    trainer.processing_class.actor_threshold = 0.0
    records, _, _ = trainer.predict(trainer.eval_dataset)

    metrics = fit_and_save_thresholds(trainer, records)

    labels = set(trainer.model.config.id2label.values())
    saved = ClassQueryVideoProcessor.from_pretrained(tmp_path).class_thresholds
    assert saved.keys() == labels
    # A class that is never reported has no precision.
    kinds = {name.partition("/")[0] for name in metrics} - {"eval_precision"}
    assert kinds == {"eval_threshold", "eval_recall"}
    assert all(metrics[f"eval_threshold/{label}"] == saved[label] for label in labels)
    page = report_errors(records, metrics, tmp_path / "report", trainer.scorer).read_text()
    assert "<h2>Thresholds</h2>" in page
    assert f"<td>{saved['jump']:.3f}</td>" in page
