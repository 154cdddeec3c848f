"""Sharing a trained detector on the Hub: its card, written from what was measured, and its upload.

python -m classquery.engine.sharing FOLDER --repo_id USER/NAME

uploads a folder that a run wrote, as `--push_to_hub` does at its end: to share it later, or after a failed upload.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.engine.sharing") -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what a run or save_pretrained wrote")
    parser.add_argument("--repo_id", required=True, help="USER/NAME on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to")
    options = parser.parse_args(arguments)
    push_folder = importlib.import_module("classquery.engine.sharing").push_folder
    print(push_folder(options.folder, options.repo_id, private=options.private, revision=options.revision))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
