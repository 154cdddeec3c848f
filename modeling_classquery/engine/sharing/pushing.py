"""Sharing a trained detector on the Hub: its card, written from what was measured, and its upload."""

import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from transformers import TrainingArguments

from classquery.engine.checkpoint import load_detector
from classquery.engine.training.trainer import ActionDetectionTrainer
from classquery.model_card_classquery import make_model_card
from classquery.modeling_classquery import ClassQueryForVideoActionDetection


# What is uploaded of a folder. An output folder also holds data, checkpoints and videos, which belong to the user.
SHARED_FILES = [
    "all_results.json",
    "config.json",
    "*_classquery*.py",
    "model*.safetensors",
    "model.safetensors.index.json",
    "training_curve.png",
    "video_preprocessor_config.json",
]
_METRICS = {
    "frame_map_50": "frame mAP at IoU 0.5",
    "video_map_20": "video mAP at IoU 0.2",
    "video_map_50": "video mAP at IoU 0.5",
}
_LIBRARIES = ("classquery", "accelerate", "datasets", "timm", "numpy")


class SharingError(ValueError):
    """Raised when something cannot be uploaded; the folder is as it was."""


def write_model_card(
    model: ClassQueryForVideoActionDetection,
    folder: str | Path,
    *,
    name: str | None = None,
    dataset: str,
    metrics: Mapping[str, float],
    protocol: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the card of a detector, `README.md`, into the folder it was saved in.

    Args:
        model: The detector.
        folder: Where it was saved.
        name: Its repository on the Hub; by default its folder.
        dataset: What it was measured on, a name and a split.
        metrics: What was measured there, by its names of evaluation with or without `eval_`; those of single labels
            are left out.
        protocol: How it was measured.
        training: What it was trained on and how; see `make_model_card`.
    """
    values = {metric: metrics.get(metric, metrics.get(f"eval_{metric}")) for metric in _METRICS}
    card = make_model_card(
        model.config,
        name or str(folder),
        num_parameters=model.num_parameters(),
        results=[_result(dataset, metric, value) for metric, value in values.items() if value is not None],
        protocol=protocol,
        training=training,
        versions={library: importlib.metadata.version(library) for library in _LIBRARIES},
    )
    card.save(Path(folder) / "README.md")


def write_card_of_run(
    trainer: ActionDetectionTrainer,
    recipe: str,
    dataset: str,
    video_map_protocol: str | None,
    origin: str | None,
    *,
    thresholds: str | None = None,
) -> None:
    """Write the card of what a run trained into its output folder, from what was done and measured.

    Args:
        trainer: After training, with `all_results.json` written if it was evaluated.
        recipe: Name of the recipe.
        dataset: Name of the data set.
        video_map_protocol: How tubes were evaluated; None for keyframes.
        origin: Path or name of the weights it started from.
        thresholds: How the saved thresholds of scores were found.
    """
    args, folder = trainer.args, Path(str(trainer.args.output_dir))
    clips: Any = trainer.train_dataset
    results = folder / "all_results.json"
    write_model_card(
        trainer.accelerator.unwrap_model(trainer.model),
        folder,
        dataset=f"{dataset} validation",
        metrics=json.loads(results.read_text(encoding="utf-8")) if args.do_eval else {},
        protocol="\n\n".join(filter(None, [_describe_protocol(video_map_protocol), thresholds])),
        training={
            "recipe": Path(recipe).stem,
            "data": f"{dataset} train, {len(clips)} clips",
            "started from": Path(origin).name if origin else "random weights",
            "updates": trainer.state.global_step,
            "clips per update": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "learning rate": args.learning_rate,
            "hardware": f"{args.world_size} x {args.device.type}",
        },
    )


def _describe_protocol(video_map_protocol: str | None) -> str:
    """Say how evaluation measures: in frames, or by a protocol of tubes as well."""
    frame_map = (
        "Frame mAP: the detections of each label over all evaluated frames, in descending order of score, are matched "
        "to its boxes by an IoU of at least 0.5; the mean of the average precision over the labels that count "
        "(`classquery.data.metrics.frame_map`)."
    )
    if video_map_protocol is None:
        return frame_map
    return (
        f"{frame_map} Video mAP: the same for tubes over whole videos, linked and counted by the protocol "
        f"`{video_map_protocol}` of `classquery.data.metrics.video_map`."
    )


def _result(dataset: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="video-action-detection",
        task_name="Video action detection",
        dataset_type=dataset.split()[0],
        dataset_name=dataset,
        metric_type=metric,
        metric_name=_METRICS[metric],
        metric_value=round(float(value), 6),
    )


def require_token(token: str | None = None) -> None:
    """Find out before any work that nothing can be uploaded.

    Raises:
        SharingError: If no token is given, in `HF_TOKEN` or logged in with, or the Hub does not take it.
    """
    if not (token or get_token()):
        raise SharingError("an upload needs a token of the Hub: run `hf auth login`, or set HF_TOKEN or --hub_token")
    try:
        HfApi(token=token).whoami()
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError) as error:
        raise SharingError(f"the Hub does not take the token, or is not there: {_in_one_line(error)}") from error


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload detector",
) -> str:
    """Upload a saved detector with its processor, code and card, and nothing else of its folder, in one commit.

    Args:
        folder: What was saved; stays as it is.
        repo_id: `USER/NAME`, or a name among those of the user; made if there is no such repository.
        token: Token with the right to write; by default the one in `HF_TOKEN` or logged in with.
        private: Whether a new repository is private.
        revision: Branch to commit to; made if there is no such branch.
        commit_message: Of the commit.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError, OSError: If the folder does not hold a complete detector and its processor.
        SharingError: If there is no token, or the upload fails.
    """
    folder = Path(folder)
    model, _ = load_detector(str(folder))
    require_token(token)
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd("README.md", _card_of(folder, url.repo_id, model).encode())]
        for path in sorted(path for pattern in SHARED_FILES for path in folder.glob(pattern)):
            operations.append(CommitOperationAdd(path.name, path))
        api.create_commit(url.repo_id, operations, commit_message=commit_message, revision=revision)
    # The last is what huggingface_hub makes of errors in the upload of a large file.
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, RuntimeError) as error:
        raise SharingError(
            f"the upload to {repo_id} failed: {_in_one_line(error.__cause__ or error)}; all is still in {folder}, try "
            f"again with: python -m classquery.engine.sharing {folder} --repo_id {repo_id}"
        ) from error
    return str(url)


def push_run(args: TrainingArguments) -> str:
    """Upload the output folder of a run as its arguments say; see `push_folder`."""
    folder = Path(str(args.output_dir))
    return push_folder(
        folder,
        args.hub_model_id or folder.resolve().name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
    )


def _card_of(folder: Path, repo_id: str, model: ClassQueryForVideoActionDetection) -> str:
    """The card in a folder, called after its repository; or a new one."""
    path = folder / "README.md"
    if not path.exists():
        return str(make_model_card(model.config, repo_id, num_parameters=model.num_parameters()))
    card = ModelCard(path.read_text(encoding="utf-8"))
    name = repo_id.rpartition("/")[2]
    card.data["model_name"] = name
    card.text = re.sub(r"^# .*$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
    card.text = re.sub(r'(pipeline\("video-action-detection", model=)"[^"]*"', rf'\1"{repo_id}"', card.text)
    return str(card)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
