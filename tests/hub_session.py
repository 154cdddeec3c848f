"""Share detectors and annotations on a Hub and fetch them again, as users would; run by `test_sharing.py`.

HF_ENDPOINT=URL HF_TOKEN=TOKEN python tests/hub_session.py DETECTOR_FOLDER
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from huggingface_hub.utils import httpx
from transformers import AutoConfig, AutoModel, AutoProcessor, VJEPA2Config, VJEPA2Model, pipeline
from utils import TOKEN_BACKBONES, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.conversion_classquery import load_backbone
from classquery.data.annotations.schema import ACTION_FEATURES, to_dataset
from classquery.engine.checkpoint import load_detector
from classquery.engine.sharing import push_folder


ROWS = [
    {
        "clip_id": f"movie,{second}",
        "video": "movie.mp4",
        "source": "video",
        "fps": 30.0,
        "timestamp": float(second),
        "tubes": [{"track_id": 1, "labels": [0, 2], "frames": None, "boxes": [[0.1, 0.2, 0.5, 0.75]]}],
    }
    for second in range(3)
]


def failed(action) -> str:
    """Message of the error of what must fail."""
    try:
        action()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("it worked")


def order(what: str, value) -> None:
    """Tell the stand-in what to do wrong."""
    httpx.put(f"{os.environ['HF_ENDPOINT']}/stand-in/{what}", json=value).raise_for_status()


def hashes(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def main() -> None:
    folder = sys.argv[1]
    report = {}
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    clip = torch.arange(4 * 3 * 40 * 48).view(4, 3, 40, 48).to(torch.uint8)
    inputs = processor(clip)

    # Model and processor, one by one.
    model.push_to_hub("tester/parts")
    processor.push_to_hub("tester/parts")
    again, its_processor = AutoModel.from_pretrained("tester/parts"), AutoProcessor.from_pretrained("tester/parts")
    report["parts"] = torch.equal(again(**its_processor(clip)).logits, model(**inputs).logits)

    # The pipeline, on a branch.
    detector = pipeline("video-action-detection", model=folder, threshold=0, actor_threshold=0)
    detector.push_to_hub("tester/pipeline", revision="experiment")
    fetched = pipeline("video-action-detection", model="tester/pipeline", revision="experiment")
    report["pipeline"] = fetched(clip, threshold=0, actor_threshold=0) == detector(clip)
    report["pipeline of main"] = failed(lambda: load_detector("tester/pipeline"))

    # A folder; another revision; the one before it.
    push_folder(folder, "tester/folder")
    first = AutoConfig.from_pretrained("tester/folder")
    with torch.no_grad():
        model.actor_head.bias.add_(1)
    model.save_pretrained(folder)
    push_folder(folder, "tester/folder", revision="longer")
    on_main, on_branch = (
        load_detector("tester/folder")[0],
        AutoModel.from_pretrained("tester/folder", revision="longer"),
    )
    report["revisions differ"] = (on_branch.actor_head.bias - on_main.actor_head.bias).mean().item()
    report["labels"] = first.id2label == model.config.id2label

    # An upload that fails, and the same again.
    before = hashes(folder)
    for part in ("large/", "commit/"):
        model.actor_head.bias.data.add_(1)
        model.save_pretrained(folder)
        before = hashes(folder)
        order("failures", {part: 403})
        report[f"failed {part}"] = failed(lambda: push_folder(folder, "tester/folder"))
        assert hashes(folder) == before
    push_folder(folder, "tester/folder")
    fetched_model, _ = load_detector("tester/folder")
    report["retried"] = torch.equal(fetched_model.actor_head.bias, model.actor_head.bias)

    # A download that breaks off, and the same again.
    push_folder(folder, "tester/unseen")
    order("halved", ["model.safetensors"])
    report["broken off"] = failed(lambda: load_detector("tester/unseen"))
    order("halved", [])
    report["downloaded again"] = len(load_detector("tester/unseen")[0].state_dict())

    # A backbone by its name; by its file it would be the same.
    pretrained = VJEPA2Model(VJEPA2Config(**{**TOKEN_BACKBONES["vjepa2"], "hidden_size": 48}))
    pretrained.push_to_hub("tester/backbone")
    backbone = TOKEN_BACKBONES["vjepa2"] | {"hidden_size": 48}
    new = ClassQueryForVideoActionDetection(tiny_config(backbone_config=backbone))
    load_backbone(new, "tester/backbone")
    weight = "encoder.layer.0.attention.query.weight"
    report["backbone"] = torch.equal(new.model.backbone.get_parameter(weight), pretrained.get_parameter(weight))
    report["no backbone"] = failed(lambda: load_backbone(new, "tester/nowhere"))

    # Annotations.
    rows = to_dataset(ROWS)
    rows.push_to_hub("tester/annotations", split="train")
    fetched_rows = load_dataset("tester/annotations", split="train")
    report["annotations"] = fetched_rows.to_list() == rows.to_list() and fetched_rows.features == ACTION_FEATURES

    # What is not there.
    report["no repository"] = failed(lambda: load_detector("tester/nowhere"))
    report["no revision"] = failed(lambda: AutoModel.from_pretrained("tester/folder", revision="nowhere"))
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
