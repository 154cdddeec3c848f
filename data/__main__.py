"""Commands for whole data sets.

    python -m classquery.data check --dataset ava --data_dir data
    python -m classquery.data prepare --dataset ava --source_dir downloads --data_dir data
    python -m classquery.data convert --dataset ucf101_24 --data_dir data --format label_studio --output tasks.json
    python -m classquery.data diff cvat.xml corrected.xml
    python -m classquery.data shard --dataset ava --data_dir data --output_dir shards
    python -m classquery.data formats

The first two end with one line that says whether the data are usable, and why not; the exit code is 0 or 1.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from classquery.data.names import SPLITS, FolderName


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.data") -> int:
    """Run a command and return the exit code."""
    options = vars(_parser(prog).parse_args(arguments))
    # What it takes is imported when it is known what to do: help texts do without.
    commands = importlib.import_module("classquery.data.commands")
    return getattr(commands, options.pop("command"))(**options)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Check or prepare a data set.")
    commands = parser.add_subparsers(required=True)
    _add_check_parser(commands)
    _add_prepare_parser(commands)
    _add_convert_parser(commands)
    _add_diff_parser(commands)
    _add_shard_parser(commands)
    formats = commands.add_parser("formats", help="list the formats that custom data may have")
    formats.set_defaults(command="print_formats")
    return parser


def _add_check_parser(commands: Any) -> None:
    check = commands.add_parser("check", help="say what is in a data set and what is wrong with it")
    check.set_defaults(command="check")
    _add_dataset_arguments(check)
    _add_custom_arguments(check)
    _add_split_arguments(check)
    check.add_argument("--decode_all", action="store_true", help="decode every frame, not three of each video")
    check.add_argument(
        "--movie_start_seconds",
        type=float,
        default=900.0,
        help="for AVA: what the annotations call the start of the files (default: 900, movies that are cut)",
    )


def _add_prepare_parser(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="cut and encode the originals for quick and exact training")
    prepare.set_defaults(command="prepare")
    prepare.add_argument("--source_dir", required=True, type=Path, help="folder with the originals")
    _add_dataset_arguments(prepare)
    _add_custom_arguments(prepare)
    _add_split_arguments(prepare)
    prepare.add_argument("--gop", type=int, default=30, help="distance of key frames; 0 copies files (default: 30)")
    prepare.add_argument("--short_side", type=int, default=0, help="in pixels; 0 keeps the size (default: 0)")
    prepare.add_argument("--crf", type=int, default=18, help="quality: 0 is best, 18 looks alike (default: 18)")
    prepare.add_argument(
        "--movie_start_seconds",
        type=float,
        default=0.0,
        help="for AVA: what the annotations call the start of the originals (default: 0, whole movies)",
    )


def _add_convert_parser(commands: Any) -> None:
    convert = commands.add_parser("convert", help="write a split as a file of an annotation tool")
    convert.set_defaults(command="convert")
    convert.add_argument("--dataset", required=True, choices=get_args(FolderName))
    convert.add_argument("--data_dir", required=True, type=Path)
    convert.add_argument("--split", default="train", choices=SPLITS)
    _add_custom_arguments(convert)
    _add_split_arguments(convert)
    convert.add_argument("--format", required=True, help="one that `formats` calls written, or ava")
    convert.add_argument("--output", required=True, type=Path, metavar="FILE")


def _add_diff_parser(commands: Any) -> None:
    diff = commands.add_parser("diff", help="say what changed from one file of annotations to another")
    diff.set_defaults(command="diff")
    diff.add_argument("old", type=Path, help="a file of any format, or a folder of such files")
    diff.add_argument("new", type=Path, help="the same after it was corrected")
    diff.add_argument("--video_folder", type=Path, help="where the videos are, for formats of different units")
    diff.add_argument("--output", type=Path, metavar="CSV", help="write all changes there")


def _add_shard_parser(commands: Any) -> None:
    shard = commands.add_parser("shard", help="write clips with their videos as shards that stream from anywhere")
    shard.set_defaults(command="shard")
    _add_source_arguments(shard)
    _add_custom_arguments(shard)
    _add_split_arguments(shard)
    shard.add_argument("--output_dir", required=True, type=Path, help="a new folder, or one that was not finished")
    shard.add_argument(
        "--shard_size", default="500MB", type=_num_bytes, help="of a file, such as 500MB or 2GB (default: 500MB)"
    )
    shard.add_argument(
        "--clip_seconds",
        type=float,
        default=64 / 30,
        help="longest clip around a keyframe that will be taken (default: the 64 frames at 30 Hz of AVA's recipes)",
    )
    shard.add_argument(
        "--keyframes_per_row", type=int, default=8, help="keyframes that may share their frames (default: 8)"
    )
    shard.add_argument("--copy", action="store_true", help="copy packets, where that is exact, and do not encode anew")
    shard.add_argument("--gop", type=int, default=12, help="distance of key frames (default: 12)")
    shard.add_argument("--crf", type=int, default=13, help="quality: 0 is best, 13 keeps 40 dB (default: 13)")
    shard.add_argument("--movie_start_seconds", type=float, default=900.0, help="as of `check`")
    shard.add_argument("--license", metavar="ID", help="of the data set, for its card, such as cc-by-4.0")
    shard.add_argument("--push_to_hub", metavar="USER/NAME", help="upload the folder as this data set, a private one")
    shard.add_argument("--public", action="store_true", help="make the data set that is uploaded a public one")


def _num_bytes(text: str) -> int:
    """Read a size such as 500MB."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]?)B?", text, re.IGNORECASE)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is no size such as 500MB or 2GB")
    return round(float(size[1]) * 1000 ** " kmgt".index(size[2].lower() or " "))


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, choices=get_args(FolderName))
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--fold", type=int, default=0, help="split of JHMDB-21: 0, 1 or 2")
    parser.add_argument(
        "--num_workers", type=int, default=0, metavar="N", help="processes beside this one (default: none)"
    )


def _add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    _add_source_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="PNG", help="draw frames with their boxes and labels there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, problems in full")


def _add_custom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--box_format",
        default="normalized",
        help="of custom data: normalized, pixel, or 3840x2160 for pixels of such frames",
    )
    parser.add_argument(
        "--timestamp_offset", type=float, default=0.0, help="what custom data call the start of the videos, in seconds"
    )
    parser.add_argument("--frames_fps", type=float, default=30.0, help="frame rate of folders of frames (default: 30)")


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=0.0,
        help="of custom data without a validation file: the split that training makes of them",
    )
    parser.add_argument("--split_seed", type=int, default=0, help="of the choice of its videos (default: 0)")


if __name__ == "__main__":
    sys.exit(main())
