"""The card of a model: what it is, what was measured, under which licence it comes, and how to use it."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .configuration_classquery import ClassQueryConfig


OWN_LICENCE = "apache-2.0"
_LICENCES = {
    OWN_LICENCE: "The weights were trained from scratch and are free under Apache-2.0, like the code.",
    "cc-by-nc-4.0": (
        "The weights are, or were trained further from, weights published under CC BY-NC 4.0: they may not be used "
        "commercially. The code is free under Apache-2.0."
    ),
}
_TAGS = ["video-action-detection", "action-detection", "spatio-temporal-action-localization", "classquery"]
# What transformers writes where nothing is known.
_TEMPLATE = "This model card has been automatically generated."
_PAPER = "https://arxiv.org/abs/2407.19698"


def make_model_card(
    config: ClassQueryConfig,
    name: str,
    *,
    num_parameters: int,
    results: Sequence[EvalResult] = (),
    protocol: str | None = None,
    training: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> ModelCard:
    """Write the card of a detector.

    Args:
        config: Its configuration.
        name: Its repository on the Hub or its folder, as the example loads it.
        num_parameters: Number of its weights.
        results: What was measured.
        protocol: How, in a sentence or two.
        training: What it was trained on and how, as rows of a table.
        versions: Of other libraries that were used.

    Returns:
        The card; its metadata has the results as a `model-index`.
    """
    licence = config.weights_license or OWN_LICENCE
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-action-detection",
        license=licence,
        tags=_TAGS,
        model_name=name.rstrip("/").rpartition("/")[2],
        eval_results=list(results) or None,
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, **(versions or {})}
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {metadata.model_name}",
        "Detects who does what, where and when in videos: "
        f"{_listed(list(config.id2label.values()))}. It is a [ClassQuery]({_PAPER}) detector, in which every class of "
        "action has its own query and so its own attention map.",
        f"## Use\n\n{_example(name)}",
        f"## Model\n\n{_table(_model_rows(config, num_parameters))}",
        *([f"## Words\n\n{_words(config)}"] if config.class_descriptions else []),
        f"## Training\n\n{_table(training) if training else 'How the weights were made is not recorded with them.'}",
        f"## Results\n\n{_results(results, protocol)}",
        f"## Limits\n\n{_limits(config)}",
        f"## Licence\n\n{_LICENCES.get(licence, f'The weights come under the licence {licence!r}.')}",
        f"## Versions\n\n{_table({'python': platform.python_version(), **versions})}",
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def replace_template(folder: str | os.PathLike, card: ModelCard) -> None:
    """Save a card in a folder, unless one is there that says more than transformers' template."""
    path = Path(folder) / "README.md"
    if not path.exists() or _TEMPLATE in path.read_text(encoding="utf-8"):
        card.save(path)


def _listed(labels: list[str], most: int = 8) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return f"{len(labels)} actions ({', '.join(map(_on_one_line, labels[:most]))}{more})"


def _example(name: str) -> str:
    return f"""```python
from transformers import pipeline

detector = pipeline("video-action-detection", model="{name}", trust_remote_code=True)
for found in detector("video.mp4"):
    print(found["time"], found["label"], round(found["score"], 2), found["box"])
```

`return_tubes=True` joins the detections of an action over time. The code in this repository needs torch, torchvision,
transformers, timm and, to read files, PyAV; read it before you trust it. With the `classquery` package imported,
`trust_remote_code` is not needed, frames are exact for every codec, and the operator is compiled."""


def _model_rows(config: ClassQueryConfig, num_parameters: int) -> dict[str, Any]:
    detects_in = "every frame" if config.output_frames == "all" else "the keyframe in its middle"
    rows = {
        "parameters": f"{num_parameters:,}",
        "backbone": config.backbone_config.model_type,
        "clip": f"{config.num_frames} frames, {config.frame_stride} apart at {config.frames_per_second:g} Hz",
        "detects in": detects_in,
        "actors per frame": f"at most {config.num_queries}",
    }
    if config.class_queries == "text":
        revision = f", revision {config.text_encoder_revision}" if config.text_encoder_revision else ""
        rows["classes"] = "read from words; others: `model.set_classes({name: sentence})`"
        rows["words encoded by"] = f"{_file_name(config.text_encoder)}{revision}"
    return rows


def _file_name(name: str | None) -> str:
    """A name on the Hub as it is, and of a folder the last part, which alone means something elsewhere."""
    return "unknown" if name is None else name if name.count("/") == 1 and name[0] != "/" else Path(name).name


def _words(config: ClassQueryConfig) -> str:
    words = {label: "; ".join(sentences) for label, sentences in config.class_descriptions.items()}
    return _table(words, ("class", "words"))


def _results(results: Sequence[EvalResult], protocol: str | None) -> str:
    if not results:
        return "None were measured with these weights."
    rows = {f"{result.metric_name}, {result.dataset_name}": f"{result.metric_value:.4f}" for result in results}
    return "\n\n".join(filter(None, [_table(rows, ("metric", "value")), protocol]))


def _limits(config: ClassQueryConfig) -> str:
    limits = [
        "It knows the actions above and people as they look in its training data; others are missed or mistaken.",
        "Scores order detections; they are not calibrated probabilities.",
        f"At most {config.num_queries} actors are found in a frame.",
    ]
    if config.untrained_classes:
        limits.append(f"Known by their words only, never trained: {_listed(config.untrained_classes)}.")
    if config.output_frames == "keyframe":
        limits.append("It detects at keyframes, once a second by default: shorter actions between them are not seen.")
    return "\n".join(f"* {limit}" for limit in limits)


def _table(rows: Mapping[str, Any], head: tuple[str, str] = ("", "")) -> str:
    # Names of classes and sentences may hold what divides the cells of a table, and lines.
    cells = [[_on_one_line(cell).replace("|", "/") for cell in row] for row in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def _on_one_line(text: Any) -> str:
    return " ".join(str(text).split())


__all__ = ["OWN_LICENCE", "make_model_card", "replace_template"]
