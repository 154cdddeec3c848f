"""A web page to drop a video on: what it shows is what `run_action_detection.py --do_predict --tubes` writes.

    python -m classquery.engine.demo [--model DIR_OR_NAME] [--port 7860]
    python -m classquery.engine.demo --write_space DIR [--model NAME]

Uploads and results go when their session ends, and all of them when the page does. Nobody waits longer for others than
`--max_seconds`.

The second command writes a Space for the Hub that needs nothing else: `app.py`, `requirements.txt`, the package itself
and a README with its metadata; with `--push_to_hub USER/NAME` it is uploaded, too.
"""

import argparse
import importlib
import math
import sys
import tempfile
from collections.abc import Sequence

from classquery.engine.demo.limits import MAX_SECONDS, MAX_UPLOAD_MB


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.engine.demo") -> None:
    """Serve the page, or write a Space."""
    options = _parse(arguments, prog)
    page = importlib.import_module("classquery.engine.demo.page")
    try:
        if options.write_space or options.push_to_hub:
            folder = page.write_space(options.write_space or tempfile.mkdtemp(), options.model)
            if options.push_to_hub:
                page.push_space(folder, options.push_to_hub)
            return
        page.launch(
            options.model,
            max_upload_mb=options.max_upload_mb,
            max_seconds=options.max_seconds,
            server_name=options.host,
            server_port=options.port,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", "--model_name_or_path", default="demo", help="folder or Hub name of a model; default: %(default)s"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines, too")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--max_upload_mb",
        type=int,
        default=MAX_UPLOAD_MB,
        help="size of the largest video to take; default: %(default)s",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help="how long a request may take, while others wait; default: %(default)s",
    )
    parser.add_argument("--write_space", metavar="DIR", help="write a Space instead of serving the page")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="upload it, too")
    options = parser.parse_args(arguments)
    if options.port is not None and not 0 < options.port < 2**16:
        parser.error(f"--port must be from 1 to 65535, got {options.port}")
    for name in ("max_upload_mb", "max_seconds"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be more than 0, got {getattr(options, name)}")
    return options


if __name__ == "__main__":
    main()
