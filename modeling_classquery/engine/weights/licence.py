"""The licence of published weights: shown, and asked for once."""

import sys
import time

from classquery.checkpoint_files_classquery import CheckpointError
from classquery.data.whole_files import write_json
from classquery.engine.weights.zoo import LICENCE, cache_folder


_TEXT = (
    f"The published weights are their authors', under {LICENCE}\n"
    "(https://creativecommons.org/licenses/by-nc/4.0/): to be used and changed with attribution, not commercially.\n"
    "What is trained further from them comes under the same licence."
)


def accept_licence() -> None:
    """Note that the licence of the published weights, CC BY-NC 4.0, is accepted; asked for before they are fetched."""
    write_json(_marker(), {LICENCE: time.strftime("%Y-%m-%d")})


def require_licence() -> None:
    """Show the licence and ask for it, unless it was accepted before.

    Raises:
        CheckpointError: If it is not accepted, or there is nobody to ask.
    """
    if _marker().exists():
        return
    print(_TEXT, file=sys.stderr)
    if not sys.stdin.isatty():
        raise CheckpointError(
            f"the licence of the published weights, {LICENCE}, is not accepted yet: accept it once, with "
            "--accept_license, or in Python with classquery.engine.weights.accept_licence()"
        )
    print("Accept? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CheckpointError(f"the licence of the published weights, {LICENCE}, was not accepted")
    accept_licence()


def _marker():
    return cache_folder() / "accepted_licence.json"
