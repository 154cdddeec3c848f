"""Sharing on the Hub, against a stand-in of its API: what goes there, what comes back, and what may go wrong."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, HubStandIn
from huggingface_hub import EvalResult, HfApi, ModelCard
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, demo_checkpoint
from classquery.conversion_classquery import load_transformer
from classquery.data.demo.movies import write_demo_movie
from classquery.engine.checkpoint import CheckpointError, load_detector
from classquery.engine.sharing import SharingError, push_folder, require_token, write_model_card
from classquery.engine.training.fine_tuning import change_classes
from classquery.model_card_classquery import make_model_card


TESTS = Path(__file__).parent
CODE = {path.name for path in (TESTS.parent / "modeling_classquery").glob("*_classquery*.py")}
CODE -= {f"{name}_classquery.py" for name in ("checkpoint_files", "checkpoint_layouts", "conversion", "published")}
CODE -= {"convert_classquery_checkpoint.py"}


@pytest.fixture(scope="module")
def hub():
    server = HubStandIn()
    yield server
    server.shutdown()
    server.server_close()


def save_detector(folder: Path, **config) -> ClassQueryForVideoActionDetection:
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(**config))
    model.save_pretrained(folder)
    ClassQueryVideoProcessor(size={"shortest_edge": 36}).save_pretrained(folder)
    return model


def run_on_hub(
    hub: HubStandIn,
    home: Path,
    *command: str | Path,
    token: str | None = TOKEN,
    expect_success: bool = True,
    cwd: Path | None = None,
):
    """Run Python with the stand-in as its Hub; large files go by the protocol that the stand-in knows."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode == 0) == expect_success, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def report(hub, tmp_path_factory):
    """What a session of uploads and downloads found."""
    root = tmp_path_factory.mktemp("session")
    save_detector(root / "out")
    (root / "out" / "private_movie.mp4").write_bytes(b"not to be shared")
    (root / "out" / "notes.py").write_text("not to be shared")
    run_on_hub(hub, root / "home", TESTS / "hub_session.py", root / "out", root / "report.json")
    return json.loads((root / "report.json").read_text())


def test_model_and_processor_are_fetched_as_they_were_shared(report, hub):
    assert report["parts"]
    assert hub.files("tester/parts").keys() == CODE | {
        "README.md",
        "config.json",
        "model.safetensors",
        "video_preprocessor_config.json",
    }
    assert "## Limits" in hub.files("tester/parts")["README.md"].decode()


def test_pipeline_is_fetched_from_the_branch_it_was_shared_on(report, hub):
    assert report["pipeline"]
    assert "## Limits" in hub.files("tester/pipeline", revision="experiment")["README.md"].decode()
    assert hub.files("tester/pipeline", revision="main") == {}
    assert report["pipeline of main"] == "CheckpointError: no model 'tester/pipeline': there is no config.json"


def test_folder_is_shared_without_what_is_beside_the_detector(report, hub):
    files = hub.files("tester/folder")

    assert files.keys() == hub.files("tester/parts").keys()
    assert 'model="tester/folder"' in files["README.md"].decode()
    assert report["labels"]


def test_revisions_are_kept_apart(report, hub):
    assert report["revisions differ"] == pytest.approx(1)
    main, longer = (hub.files("tester/folder", revision=revision) for revision in ("main", "longer"))
    assert main["model.safetensors"] != longer["model.safetensors"]
    assert all(main[name] == longer[name] for name in CODE)


def test_annotations_are_fetched_with_their_features(report):
    assert report["annotations"]


def test_backbone_is_taken_by_its_name_on_the_hub(report):
    assert report["backbone"]
    assert report["no backbone"].startswith(
        "CheckpointError: tester/nowhere is no file or folder, and its weights could not"
    )


def test_what_is_not_there_is_said(report):
    assert "no model 'tester/nowhere'" in report["no repository"]
    assert "nowhere" in report["no revision"]


@pytest.mark.parametrize("part", ["large/", "commit/"])
def test_failed_upload_leaves_the_folder_as_it_was_and_says_how_to_try_again(report, part):
    message = report[f"failed {part}"]

    assert message.startswith("SharingError: the upload to tester/folder failed: ")
    assert "403" in message
    assert re.search(r"again with: python -m classquery.engine.sharing \S+/out --repo_id tester/folder$", message)
    assert "\n" not in message


def test_upload_is_tried_again(report):
    assert report["retried"]


def test_download_that_breaks_off_is_not_taken_for_a_model(report):
    assert (
        "CheckpointError: model.safetensors of tester/unseen could not be downloaded completely"
        in report["broken off"]
    )
    assert report["downloaded again"] > 100


@pytest.mark.slow
def test_example_of_the_card_runs_without_importing_the_package(report, hub, tmp_path):
    """Code and weights come from the repository, as for somebody who finds the model there."""
    card = ModelCard(hub.files("tester/folder")["README.md"].decode())
    (example,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=2).rename(tmp_path / "video.mp4")
    code = example.replace('("video.mp4")', '("video.mp4", threshold=0, actor_threshold=0)')
    (tmp_path / "example.py").write_text(f"{code}\nimport sys\nassert 'classquery' not in sys.modules\n")

    printed = run_on_hub(hub, tmp_path / "home", tmp_path / "example.py", token=None, cwd=tmp_path).stdout

    assert len(printed.splitlines()) == 2 * 3 * 5  # Keyframes, candidates, classes.


def test_no_token_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("classquery.engine.sharing.pushing.get_token", lambda: None)

    with pytest.raises(SharingError, match=r"^an upload needs a token of the Hub: run `hf auth login`, .*HF_TOKEN.*$"):
        require_token()


def test_no_hub_is_one_clear_line(monkeypatch, tmp_path):
    save_detector(tmp_path)
    monkeypatch.setattr(
        "classquery.engine.sharing.pushing.HfApi", functools.partial(HfApi, endpoint="http://127.0.0.1:9")
    )

    with pytest.raises(SharingError, match="the Hub does not take the token, or is not there: .*(refused|offline)"):
        push_folder(tmp_path, "tester/name", token=TOKEN)


def test_incomplete_folder_is_not_shared(tmp_path):
    save_detector(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="no weights"):
        push_folder(tmp_path, "tester/name", token=TOKEN)


# Cards


def test_card_says_what_was_measured(tmp_path):
    model = save_detector(tmp_path, id2label={0: "stand", 1: "walk"}, num_labels=2)

    write_model_card(
        model,
        tmp_path,
        dataset="demo validation",
        metrics={"eval_frame_map_50": 0.51234567, "eval_frame_ap_50/walk": 0.25, "eval_loss": 3.0},
        protocol="By hand.",
        training={"recipe": "demo", "updates": 1400},
    )

    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert result == EvalResult(
        task_type="video-action-detection",
        task_name="Video action detection",
        dataset_type="demo",
        dataset_name="demo validation",
        metric_type="frame_map_50",
        metric_name="frame mAP at IoU 0.5",
        metric_value=0.512346,
    )
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.pipeline_tag == "video-action-detection"
    for line in (
        "2 actions (stand, walk)",
        f"| parameters | {model.num_parameters():,} |",
        "| frame mAP at IoU 0.5, demo validation | 0.5123 |",
        "By hand.",
        "| updates | 1400 |",
        f"| torch | {torch.__version__} |",
        "| classquery | ",
    ):
        assert line in card.text
    assert "0.25" not in card.text


def test_card_of_unmeasured_weights_says_so():
    card = make_model_card(tiny_config(), "me/detector", num_parameters=7)

    assert "None were measured with these weights." in card.text
    assert "is not recorded" in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize("how", ["same", "replace"])
def test_licence_of_converted_weights_stays_with_what_is_trained_further(how, tmp_path):
    published = save_detector(tmp_path / "published")
    published.config.weights_license = "cc-by-nc-4.0"
    published.save_pretrained(tmp_path / "converted")
    ClassQueryVideoProcessor().save_pretrained(tmp_path / "converted")

    model, _ = load_detector(str(tmp_path / "converted"))
    labels = list(model.config.id2label.values()) if how == "same" else ["wave"]
    tuned = change_classes(model, labels, how)
    second_stage = ClassQueryForVideoActionDetection(tiny_config())
    load_transformer(second_stage, tmp_path / "converted")

    for derived in (tuned, second_stage):
        card = make_model_card(derived.config, "me/detector", num_parameters=7)
        assert card.data.license == "cc-by-nc-4.0"
        assert "may not be used commercially" in card.text


@pytest.mark.slow
def test_script_shares_what_it_trained(hub, demo_dir, tmp_path):
    recipe = tmp_path / "tiny.json"
    recipe.write_text(json.dumps({"base": "demo", "data": {"dataset": "ava"}}))
    script = TESTS.parent / "run_action_detection.py"
    command = [script, "--recipe", recipe, "--data_dir", demo_dir, "--output_dir", tmp_path / "out", "--do_train"]
    command += ["--do_eval", "--do_predict", "--max_steps", "1", "--eval_strategy", "no", "--use_cpu", "--push_to_hub"]
    command += ["--hub_model_id", "tester/from_script"]

    without_token = run_on_hub(hub, tmp_path / "home", *command, token=None, expect_success=False)
    assert without_token.stderr.splitlines()[-1].startswith("error: an upload needs a token")
    assert not (tmp_path / "out").exists()

    run_on_hub(hub, tmp_path / "home", *command)
    files = hub.files("tester/from_script")
    assert (tmp_path / "out" / "predictions").exists()
    assert files.keys() >= CODE | {"README.md", "all_results.json", "config.json", "model.safetensors"}
    assert not [name for name in files if name.endswith((".mp4", ".parquet", ".bin"))]
    card = ModelCard(files["README.md"].decode())
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(results["eval_frame_map_50"], abs=1e-6)
    assert "| recipe | tiny |" in card.text
    assert 'model="tester/from_script"' in card.text


@pytest.mark.slow
def test_examples_of_the_documentation_run(hub, tmp_path):
    """In their order, but for the run that trains."""
    page = (TESTS.parent / "docs" / "share.md").read_text().replace("me/", "tester/")
    write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=2).rename(tmp_path / "video.mp4")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 4

    for number, example in enumerate(examples):
        (tmp_path / "example.py").write_text(example)
        run_on_hub(hub, tmp_path / f"home{number}", tmp_path / "example.py", cwd=tmp_path)
    command = ["-m", "classquery.engine.sharing", demo_checkpoint(), "--repo_id", "tester/again", "--private"]
    assert f"{hub.url}/tester/again" in run_on_hub(hub, tmp_path / "home", *command).stdout
