"""Loading a trained detector with its processor, or saying why it cannot be loaded."""

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, demo_checkpoint


class CheckpointError(ValueError):
    """Raised when a model cannot be loaded, or not completely."""


def load_detector(name_or_path: str) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load a detector, in single precision, and the processor saved with it.

    Unlike `from_pretrained` alone, which fills what is missing with random weights, this refuses a checkpoint that
    does not hold exactly the weights of the model.

    Args:
        name_or_path: A folder, a name on the Hub, or `demo` for the small model in the package.

    Raises:
        CheckpointError: If there is no such model, it is none of ours, the file is damaged or weights are missing,
            left over or of another shape.
        OSError: If the weights or the configuration of the processor are missing.
    """
    path = demo_checkpoint() if name_or_path == "demo" else name_or_path
    try:
        config = AutoConfig.from_pretrained(path)
    except OSError as error:
        message = (
            f"no model {name_or_path!r}: it is no folder with a config.json and was not found on the Hub: {error}"
        )
        raise CheckpointError(message) from error
    if config.model_type != ClassQueryConfig.model_type:
        raise CheckpointError(
            f"{path} holds a model of type {config.model_type!r}, not {ClassQueryConfig.model_type!r}"
        )
    try:
        model, report = ClassQueryForVideoActionDetection.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise CheckpointError(f"the weights in {path} are damaged or not complete: {error}") from error
    problems = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}, as {keys[0]}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"the weights in {path} do not fit its config.json: {found}")
    return model, ClassQueryVideoProcessor.from_pretrained(path)
