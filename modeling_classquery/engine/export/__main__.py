"""Detectors as programs that run without this package: ONNX, for ONNX Runtime and others, and torch.export.

    python -m classquery.engine.export --model_name_or_path demo --output model.onnx

The file is run and compared with the model before it appears under its name; one that differs is not kept. It carries
what its users need besides tensors: the names of the classes, the values of the processor and the configuration.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from classquery.engine.export.options import AXES, ExportOptions


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.engine.export") -> None:
    """Run the command.

    Raises:
        ValueError: If the detector cannot be loaded or exported.
        OSError: If a file cannot be read or written.
    """
    options = _parse(arguments, prog)
    # What it takes is imported when it is known what to do: help texts do without.
    load_detector = importlib.import_module("classquery.engine.checkpoint").load_detector
    export_detector = importlib.import_module("classquery.engine.export").export_detector
    model, processor = load_detector(options.pop("model_name_or_path"))
    path = options.pop("output")
    deviations = export_detector(model, processor, path, ExportOptions(**options))
    print(f"saved {path}; the largest deviation from the model of each output:")
    for name, deviation in deviations.items():
        print(f"  {name:12} {deviation:.1e}")


def _parse(arguments: Sequence[str] | None, prog: str) -> dict:
    """Options by name, those of [`ExportOptions`] and two more."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    defaults = ExportOptions()
    parser.add_argument("--model_name_or_path", "--model", default="demo", help="folder, name on the Hub, or `demo`")
    parser.add_argument("--output", required=True, type=Path, help="file to write: .onnx or .pt2 (torch.export)")
    parser.add_argument(
        "--dynamic",
        nargs="*",
        choices=list(AXES),
        default=defaults.dynamic,
        help="what is left open; without a value, nothing (default: both)",
    )
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="clips of a call, if not dynamic")
    parser.add_argument("--height", type=int, help="of the frames, if not dynamic (default: the processor's)")
    parser.add_argument("--width", type=int, help="of the frames, if not dynamic (default: 4/3 of the height)")
    parser.add_argument(
        "--sampling",
        choices=("gather", "grid_sample"),
        help="how features are read between cells (default: gather for ONNX)",
    )
    parser.add_argument("--opset", type=int, default=defaults.opset, help="of ONNX (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=defaults.tolerance,
        help="allowed deviation of any output (default: %(default)s)",
    )
    options = vars(parser.parse_args(arguments))
    return options | {"dynamic": tuple(options["dynamic"])}


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
