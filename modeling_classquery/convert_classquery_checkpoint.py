"""Published weights for our models: whole detectors, pre-trained backbones and transformers of a first stage.

    python -m classquery.convert_classquery_checkpoint --recipe ava22_vit_b --output DIR --checkpoint detector.pth
    python -m classquery.convert_classquery_checkpoint --recipe ava22_vit_b --output DIR \
        --backbone backbone.pth --transformer stage_one.pth

Every tensor of a file is used, or known to be of no use, or reported: none is dropped silently. A file that does not
fit changes nothing.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError


LICENCE = "Weights converted from the published files stay under their own licence, CC BY-NC 4.0."

# Loaded when they are used: help texts do without torch.
_LIBRARY = (
    "LoadingReport",
    "convert_original_state_dict",
    "load_backbone",
    "load_checkpoint",
    "load_transformer",
    "save_detector",
)


def __getattr__(name: str):
    if name not in _LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("classquery.conversion_classquery"), name)


def main(
    arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.convert_classquery_checkpoint"
) -> None:
    """Run the command.

    Raises:
        ValueError: If the recipe or a file does not fit, or the output folder is not empty.
    """
    options = _parse(arguments, prog)
    importlib.import_module("classquery.conversion_classquery").convert(**vars(options))
    print(LICENCE)


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=LICENCE)
    parser.add_argument("--recipe", required=True, help="name of a recipe, or a JSON file: what the model is")
    parser.add_argument("--output", required=True, type=Path, help="new or empty folder to save the model in")
    parser.add_argument("--checkpoint", type=Path, help="published detector (.pth)")
    parser.add_argument(
        "--backbone",
        type=Path,
        help="pre-trained backbone: .mat of CSN; .pth of a ViT; file, folder or Hub name of VideoMAE or V-JEPA 2; "
        "published:NAME",
    )
    parser.add_argument(
        "--transformer",
        type=Path,
        help="detector of stage one: published (.pth, or published:NAME), or folder of one of ours",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is in none of the files (default: 0)")
    options = parser.parse_args(arguments)
    if (options.checkpoint is None) == (options.backbone is None and options.transformer is None):
        parser.error("give either --checkpoint, or --backbone and --transformer or one of them")
    return options


if __name__ == "__main__":
    try:
        main()
    except (OSError, StrictDataclassError, ValueError) as error:
        sys.exit(f"error: {error}")
