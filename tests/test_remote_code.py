"""What a saved folder computes where the package is not installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForObjectDetection,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)
from utils import TOKEN_BACKBONES, tiny_config

from classquery import (
    ClassQueryConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryVideoProcessor,
    VideoActionDetectionPipeline,
    demo_checkpoint,
)
from classquery.data.demo.movies import write_demo_movie
from classquery.kernels import use_implementation


BACKBONES = {
    "vit": tiny_config().backbone_config.to_dict(),
    "csn": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]},
    **TOKEN_BACKBONES,
}
DETECTORS = {name: {"backbone_config": backbone} for name, backbone in BACKBONES.items()}
DETECTORS["words"] = {"class_queries": "text", "text_embedding_size": 8, "class_readout": "per_class", "num_labels": 1}
# All that the package depends on and code from the Hub does not.
NOT_NEEDED = [
    "accelerate",
    "av",
    "classquery",
    "datasets",
    "decord",
    "evaluate",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
]
NOT_NEEDED += ["scipy"]


def save_detector(folder: Path, **config) -> None:
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(**config))
    if model.config.class_queries == "text":
        model.set_classes(["a person waves", "a person walks"], lambda sentences: torch.randn(len(sentences), 8))
    model.save_pretrained(folder)
    ClassQueryVideoProcessor(size={"shortest_edge": 36}).save_pretrained(folder)


def run_remotely(root: Path, hidden: list[str]) -> None:
    script = Path(__file__).with_name("remote_code.py")
    environment = os.environ | {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, str(script), str(root), *hidden]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def computed_here(folder: Path, video) -> dict:
    """What `remote_code.compute` returns, by the package with the plain operator."""
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    detector = pipeline("video-action-detection", model=str(folder))
    inputs = processor(torch.arange(4 * 3 * 40 * 48).view(4, 3, 40, 48).to(torch.uint8))
    with torch.no_grad(), use_implementation("torch"):
        outputs = model(**inputs)
        detections = detector(video, threshold=0, actor_threshold=0, top_k=2)
    names = ("logits", "scores", "pred_boxes", "actor_logits")
    return {"pixel_values": inputs["pixel_values"], **{n: outputs[n] for n in names}, "detections": detections}


def assert_same(computed: dict, expected: dict) -> None:
    assert computed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(computed[name], value) if isinstance(value, torch.Tensor) else computed[name] == value, name


@pytest.fixture(scope="module")
def remote_root(tmp_path_factory):
    """One detector per backbone, and what they computed without the package."""
    root = tmp_path_factory.mktemp("remote")
    for name, config in DETECTORS.items():
        save_detector(root / name / "first", **config)
    torch.save(torch.randint(256, (70, 3, 60, 80), dtype=torch.uint8), root / "clip.pt")
    run_remotely(root, NOT_NEEDED)
    return root


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", DETECTORS)
def test_folder_computes_the_same_without_the_package(remote_root, name):
    folder, clip = remote_root / name, torch.load(remote_root / "clip.pt")

    expected = computed_here(folder / "first", clip)

    assert len({found["frame"] for found in expected["detections"]}) == 3
    assert_same(torch.load(folder / "outputs.pt"), expected)
    assert_same(torch.load(folder / "outputs_again.pt"), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_folder_saved_without_the_package_is_complete(remote_root, name):
    first, second = (remote_root / name / generation for generation in ("first", "second"))

    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.glob("*.py"):
        assert path.read_text() == (second / path.name).read_text()
    clip = torch.zeros(4, 3, 40, 48, dtype=torch.uint8)
    assert_same(computed_here(second, clip), computed_here(first, clip))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_videos_are_read_without_the_package_too(tmp_path):
    """By PyAV, if it is there: the demo writes H.264, which it numbers like the clip reader."""
    shutil.copy(write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=2), tmp_path / "video.mp4")
    save_detector(tmp_path / "all" / "first", output_frames="all", frame_stride=1)

    run_remotely(tmp_path, [name for name in NOT_NEEDED if name != "av"])

    expected = computed_here(tmp_path / "all" / "first", tmp_path / "video.mp4")
    assert {found["frame"] for found in expected["detections"]} == set(range(30))
    assert_same(torch.load(tmp_path / "all" / "outputs.pt"), expected)


def test_auto_classes_and_pipeline_load_a_folder_with_the_package(tmp_path):
    save_detector(tmp_path)

    assert type(AutoConfig.from_pretrained(tmp_path)) is ClassQueryConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is ClassQueryForVideoActionDetection
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path)) is ClassQueryForVideoActionDetection
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is ClassQueryVideoProcessor
    assert type(AutoProcessor.from_pretrained(tmp_path)) is ClassQueryVideoProcessor
    # The copy in the folder is not run, even where one would trust it.
    for trust_remote_code in (None, True):
        detector = pipeline("video-action-detection", model=str(tmp_path), trust_remote_code=trust_remote_code)
        assert type(detector) is VideoActionDetectionPipeline
        assert type(detector.model) is ClassQueryForVideoActionDetection


def test_package_carries_its_code_once():
    assert not list(Path(demo_checkpoint()).glob("*.py"))
