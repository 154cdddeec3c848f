"""List published weights, or get them: fetched, checked, and a detector converted.

    classquery weights
    classquery weights get ava22_vit_b_v2

Afterwards `published:NAME` works offline, as in --model_name_or_path, --backbone_checkpoint and
--transformer_checkpoint, in load_detector and in pipeline.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from classquery.engine import weights


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.engine.weights") -> None:
    """Run the command.

    Raises:
        CheckpointError: If there are no such weights, their licence is not accepted, or they cannot be had.
    """
    options = _parse(arguments, prog)
    if options.command != "get":
        print(weights.describe_zoo())
        return
    # Names are checked before anything is fetched.
    found = [importlib.import_module("classquery.engine.weights.converting").find_weights(n) for n in options.names]
    if options.accept_license:
        weights.accept_licence()
    for one in found:
        is_detector = one.kind == "detector"
        path = weights.detector_folder(one.name) if is_detector else weights.weights_file(one.name, (one.kind,))
        print(f"published:{one.name} is in {path}")


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="list them, and what of them is here (default)")
    get = commands.add_parser("get", help="get weights by name")
    get.add_argument("names", nargs="+", metavar="NAME", help="one of the list")
    get.add_argument(
        "--accept_license", action="store_true", help="accept their licence, CC BY-NC 4.0; asked for once otherwise"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    # Errors in names, licences and files of weights are ValueErrors.
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
