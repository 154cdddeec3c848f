"""Sharing on the Hub, against a stand-in of its API: what goes there, what comes back, and what may go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, HubStandIn
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor


TESTS = Path(__file__).parent
CODE = {path.name for path in (TESTS.parent / "modeling_classquery").glob("*_classquery*.py")}
CODE -= {"convert_classquery_checkpoint.py", "checkpoint_layouts_classquery.py"}


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
    hub: HubStandIn, home: Path, *command: str | Path, token: str | None = TOKEN, expect_success: bool = True
):
    """Run Python with the stand-in as its Hub; large files go by the protocol that the stand-in knows."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode == 0) == expect_success, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def report(hub, tmp_path_factory):
    """What a session of uploads and downloads found."""
    root = tmp_path_factory.mktemp("session")
    save_detector(root / "out")
    (root / "out" / "private_movie.mp4").write_bytes(b"not to be shared")
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


def test_what_is_not_there_is_said(report):
    assert "no model 'tester/nowhere'" in report["no repository"]
    assert "nowhere" in report["no revision"]
