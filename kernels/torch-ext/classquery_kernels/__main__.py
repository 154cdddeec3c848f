"""Say which implementations are available, or compile ahead, as for an image that has no compiler later.

    python -m classquery.kernels
    python -m classquery.kernels build [--gpus sm_80 sm_90 ...] [--dtypes float32 bfloat16 ...]

The libraries for the CPU are put into the installed package. They run beside any version of PyTorch, on any processor
of the same family (x86-64: with AVX2). Kernels for GPUs go to the cache that the first use looks in
(`XDG_CACHE_HOME`); they are those of the published encoders, 8 heads of 32 channels, 4 levels of 8 points.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence

from .build import SOURCES, BuildError, build_ahead


DTYPES = "float16", "bfloat16", "float32", "float64"


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.kernels") -> None:
    """Run the command.

    Raises:
        BuildError: If something that was asked for cannot be built.
    """
    options = _parse(arguments, prog)
    if options.command == "build":
        _build(options.gpus, options.dtypes)
        return
    # What it takes is imported when it is known what to do: help texts do without torch.
    for name, description in importlib.import_module(__package__).implementations().items():
        print(f"{name:8} {description}")


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build = parser.add_subparsers(dest="command").add_parser("build", help="compile ahead")
    build.add_argument(
        "--gpus", nargs="+", type=_gpu, default=[], help="such as sm_90, or compute_90 for newer ones; no GPU needed"
    )
    build.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="of values on GPUs")
    return parser.parse_args(arguments)


def _gpu(name: str) -> str:
    if not re.fullmatch(r"(sm|compute)_\d+[af]?", name):
        raise argparse.ArgumentTypeError(f"a GPU is named as sm_90 or compute_90, got {name!r}")
    return name


def _build(gpus: Sequence[str], dtypes: Sequence[str]) -> None:
    for source in ("deformable_attention.cpp", "pixels.cpp"):
        print(f"cpu      {build_ahead(SOURCES / source)}", flush=True)
    if not gpus:
        return
    torch, cuda = importlib.import_module("torch"), importlib.import_module(".cuda", __package__)
    for gpu in gpus:
        for dtype in dtypes:
            path = cuda.compiled_kernels(cuda.Configuration(getattr(torch, dtype)), gpu)
            print(f"{gpu:8} {path} for {dtype}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"error: {error}")
