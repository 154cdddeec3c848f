"""Commands for whole data sets.

    python -m classquery.data check --dataset ava --data_dir data
    python -m classquery.data prepare --dataset ava --source_dir downloads --data_dir data
    python -m classquery.data convert --dataset ucf101_24 --data_dir data --format label_studio --output tasks.json
    python -m classquery.data formats

The first two end with one line that says whether the data are usable, and why not; the exit code is 0 or 1.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from datasets import Dataset

from classquery.data.annotations.formats import FORMATS
from classquery.data.annotations.parquet import save_action_dataset
from classquery.data.annotations.registry import DatasetName, load_action_dataset, load_action_labels
from classquery.data.annotations.schema import MAX_SHOWN
from classquery.data.preparation.checking import SPLITS, Finding, Report, SplitSummary, check_dataset
from classquery.data.preparation.contact_sheet import draw_contact_sheet
from classquery.data.preparation.preparing import Encoding, prepare_videos
from classquery.data.whole_files import replacing, write_json


BAR_WIDTH = 30
MAX_COLUMN_WIDTH = 34


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    return command(**options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m classquery.data", description="Check or prepare a data set.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say what is in a data set and what is wrong with it")
    check.set_defaults(command=_check)
    _add_dataset_arguments(check)
    _add_custom_arguments(check)
    check.add_argument("--decode_all", action="store_true", help="decode every frame, not three of each video")
    check.add_argument(
        "--movie_start_seconds",
        type=float,
        default=900.0,
        help="for AVA: what the annotations call the start of the files (default: 900, movies that are cut)",
    )
    prepare = commands.add_parser("prepare", help="cut and encode the originals for quick and exact training")
    prepare.set_defaults(command=_prepare)
    prepare.add_argument("--source_dir", required=True, type=Path, help="folder with the originals")
    _add_dataset_arguments(prepare)
    _add_custom_arguments(prepare)
    prepare.add_argument("--gop", type=int, default=30, help="distance of key frames; 0 copies files (default: 30)")
    prepare.add_argument("--short_side", type=int, default=0, help="in pixels; 0 keeps the size (default: 0)")
    prepare.add_argument("--crf", type=int, default=18, help="quality: 0 is best, 18 looks alike (default: 18)")
    prepare.add_argument(
        "--movie_start_seconds",
        type=float,
        default=0.0,
        help="for AVA: what the annotations call the start of the originals (default: 0, whole movies)",
    )
    convert = commands.add_parser("convert", help="write a split as a file of an annotation tool")
    convert.set_defaults(command=_convert)
    convert.add_argument("--dataset", required=True, choices=get_args(DatasetName))
    convert.add_argument("--data_dir", required=True, type=Path)
    convert.add_argument("--split", default="train", choices=SPLITS)
    convert.add_argument("--format", required=True, choices=[fmt.name for fmt in FORMATS if fmt.write])
    convert.add_argument("--output", required=True, type=Path, metavar="FILE")
    formats = commands.add_parser("formats", help="list the formats that custom data may have")
    formats.set_defaults(command=_print_formats)
    return parser


def _add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, choices=get_args(DatasetName))
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--fold", type=int, default=0, help="split of JHMDB-21: 0, 1 or 2")
    parser.add_argument("--output", type=Path, metavar="PNG", help="draw frames with their boxes and labels there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, problems in full")
    parser.add_argument(
        "--num_workers", type=int, default=0, metavar="N", help="processes beside this one (default: none)"
    )


def _add_custom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--box_format", choices=("normalized", "pixel"), default="normalized", help="of custom data")
    parser.add_argument(
        "--timestamp_offset", type=float, default=0.0, help="what custom data call the start of the videos, in seconds"
    )
    parser.add_argument("--frames_fps", type=float, default=30.0, help="frame rate of folders of frames (default: 30)")


def _check(dataset: str, data_dir: Path, output: Path | None, json: Path | None, **options: Any) -> int:
    report, rows = check_dataset(dataset, data_dir, **options)
    return _finish(report, rows, output, json)


def _prepare(
    dataset: str,
    source_dir: Path,
    data_dir: Path,
    gop: int,
    short_side: int,
    crf: int,
    movie_start_seconds: float,
    output: Path | None,
    json: Path | None,
    **options: Any,
) -> int:
    try:
        errors = prepare_videos(
            dataset,
            source_dir,
            data_dir,
            encoding=Encoding(gop, short_side, crf),
            movie_start_seconds=movie_start_seconds,
            **options,
        )
    except (OSError, ValueError) as error:
        # Contradicting options or a full disk: nothing can be prepared.
        print(f"not usable: {error}")
        return 1
    report, rows = check_dataset(dataset, data_dir, **options)
    report.add_problem("videos or splits that could not be prepared: {}", errors)
    if not report.problems:
        labels = load_action_labels(dataset, data_dir)
        for split, split_rows in rows.items():
            save_action_dataset(split_rows, labels, data_dir, split)
    return _finish(report, rows, output, json)


def _convert(dataset: str, data_dir: Path, split: str, format: str, output: Path) -> int:
    (write,) = (fmt.write for fmt in FORMATS if fmt.name == format)
    try:
        rows = load_action_dataset(dataset, data_dir, split)
        write(output, rows, load_action_labels(dataset, data_dir))
    except (OSError, ValueError) as error:
        print(f"not written: {error}")
        return 1
    print(f"Wrote {len(rows):,} rows: {output}")
    return 0


def _print_formats() -> int:
    for fmt in FORMATS:
        print(f"{fmt.name:14} {'read, written' if fmt.write else 'read':14} {fmt.title}")
    return 0


def _finish(report: Report, rows: dict[str, Dataset], output: Path | None, json: Path | None) -> int:
    """Print and draw what was found, the verdict last, and return the exit code."""
    print_report(report)
    if json is not None:
        write_json(json, report.to_dict(), indent=2)
    if output is not None and rows:
        sheet = draw_contact_sheet(next(iter(rows.values())), load_action_labels(report.dataset, report.data_dir))
        with replacing(output) as partial_path:
            sheet.save(partial_path)
        print(f"Drew frames with their boxes and labels: {output}")
    print(report.verdict)
    return int(bool(report.problems))


# The report as text


def print_report(report: Report) -> None:
    """Print everything but the verdict."""
    print(f"{report.dataset} in {report.data_dir}")
    for split, summary in report.splits.items():
        _print_split(split, summary)
    for title, findings in (("PROBLEM", report.problems), ("Warning", report.warnings)):
        for finding in findings:
            _print_finding(title, finding)
    print()


def _print_split(split: str, summary: SplitSummary) -> None:
    unusable = [(summary.num_missing_videos, "missing"), (summary.num_unreadable_videos, "unreadable")]
    notes = "".join(f", {count} {what}" for count, what in unusable if count)
    print(f"\n{split}: {summary.num_rows:,} rows, {summary.num_videos:,} videos{notes}, {summary.hours:.2f} hours")
    for line in summary.read_as.splitlines():
        print(f"  {line}")
    print(f"  {summary.num_actors:,} actors, {summary.num_boxes:,} boxes")
    for title, ranges in (("corners", summary.box_corners), ("sizes", summary.box_sizes)):
        text = ", ".join(
            f"{name} {' .. '.join(f'{value:.3f}' for value in values)}" for name, values in ranges.items()
        )
        print(f"  {title}: {text}")
    print(f"  videos by frames per second: {_counts(summary.videos_per_frame_rate)}")
    print(f"  videos by size: {_counts(summary.videos_per_size)}")
    _print_bars(summary.actors_per_class)


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:6]]
    more = f", and {len(counts) - 6} others" if len(counts) > 6 else ""
    return (", ".join(shown) or "unknown") + more


def _print_bars(counts: dict[str, int]) -> None:
    largest = max(counts.values(), default=0) or 1
    width = min(MAX_COLUMN_WIDTH, max(map(len, counts), default=0))
    for name, count in counts.items():
        print(f"  {name[:width]:{width}} {count:>8,} {_bar(count / largest)}".rstrip())


def _bar(fraction: float) -> str:
    """Draw a bar in steps of an eighth of a character; anything above nothing is visible."""
    eighths = max(round(8 * BAR_WIDTH * fraction), int(fraction > 0))
    symbols = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    encoding = sys.stdout.encoding or "ascii"
    # Some consoles cannot show these characters.
    return symbols if encoding.lower().startswith("utf") else "#" * round(BAR_WIDTH * fraction)


def _print_finding(title: str, finding: Finding) -> None:
    print(f"\n{title}: {finding.summary}")
    for detail in finding.details[:MAX_SHOWN]:
        print("  " + detail.replace("\n", "\n  "))
    if len(finding.details) > MAX_SHOWN:
        print(f"  ... and {len(finding.details) - MAX_SHOWN} more (all with --json)")


if __name__ == "__main__":
    sys.exit(main())
