"""What the commands of `python -m classquery.data` do."""

import csv
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from classquery.data.annotations.ava_writing import write_ava_rows
from classquery.data.annotations.comparing import Change, compare_annotations
from classquery.data.annotations.formats import FORMATS
from classquery.data.annotations.parquet import save_action_dataset
from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.annotations.schema import MAX_SHOWN, and_others, shorten
from classquery.data.preparation.checking import Finding, Report, SplitSummary, check_dataset
from classquery.data.preparation.contact_sheet import draw_contact_sheet
from classquery.data.preparation.preparing import Encoding, prepare_videos
from classquery.data.shards.sharing import push_action_dataset, require_shareable
from classquery.data.shards.writing import write_shards
from classquery.data.whole_files import replacing, write_json


BAR_WIDTH = 30
MAX_COLUMN_WIDTH = 34


def check(dataset: str, data_dir: Path, output: Path | None, json: Path | None, **options: Any) -> int:
    """Check a data set and return the exit code."""
    report, rows = check_dataset(dataset, data_dir, **options)
    return _finish(report, rows, output, json)


def prepare(
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
    """Prepare and check a data set, write it as tables, and return the exit code."""
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


def convert(dataset: str, data_dir: Path, split: str, format: str, output: Path, **options: Any) -> int:
    """Write a split as a file of an annotation tool and return the exit code."""
    writers = {fmt.name: fmt.write for fmt in FORMATS if fmt.write} | {"ava": write_ava_rows}
    if format not in writers:
        print(f"not written: --format must be one of {', '.join(writers)}, got {shorten([format])}")
        return 2
    try:
        rows = load_action_dataset(dataset, data_dir, split, **options)
        writers[format](output, rows, load_action_labels(dataset, data_dir))
    except (OSError, ValueError) as error:
        print(f"not written: {error}")
        return 1
    print(f"Wrote {len(rows):,} rows: {output}")
    return 0


def diff(old: Path, new: Path, video_folder: Path | None, output: Path | None) -> int:
    """Print what changed from one file of annotations to another and return the exit code."""
    try:
        found = compare_annotations(old, new, video_folder)
    except (OSError, ValueError) as error:
        print(f"not compared: {error}")
        return 1
    print("boxes: " + (", ".join(f"{count:,} {what}" for what, count in found.boxes.most_common()) or "none"))
    rows = [("class", "before", "after", "kept", "added", "removed")]
    rows += [
        (name, *(f"{count:,}" for count in (of.before, of.after, of.kept, of.added, of.removed)))
        for name, of in sorted(found.classes.items())
    ]
    width = min(MAX_COLUMN_WIDTH, max(len(row[0]) for row in rows))
    for name, *counts in rows:
        print(f"{name[:width]:{width}} " + " ".join(f"{count:>9}" for count in counts))
    for change in found.changes[:MAX_SHOWN]:
        print(f"{change.video}, {change.start:g} to {change.end:g}, {change.who or 'nobody'}: {change.what}")
    if len(found.changes) > MAX_SHOWN:
        print(f"... and {len(found.changes) - MAX_SHOWN} more changes (all with --output)")
    if output is not None:
        with replacing(output) as path, path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Change._fields, *found.changes])
    return 0


def shard(
    dataset: str,
    data_dir: Path,
    output_dir: Path,
    shard_size: int,
    copy: bool,
    gop: int,
    crf: int,
    license: str | None,
    push_to_hub: str | None,
    public: bool,
    **options: Any,
) -> int:
    """Write a data set as shards, upload them if asked for, and return the exit code."""
    try:
        if push_to_hub:
            require_shareable(license)
        lost = write_shards(
            dataset,
            data_dir,
            output_dir,
            shard_bytes=shard_size,
            encoding=None if copy else Encoding(gop=gop, crf=crf),
            license_id=license,
            **options,
        )
        url = push_action_dataset(output_dir, push_to_hub, private=not public) if push_to_hub else None
    except (OSError, ValueError) as error:
        # Contradicting options, a full disk, or a transfer that broke off: what is finished stays.
        print(f"not written: {error}")
        return 1
    if lost:
        _print_finding("PROBLEM", Finding(f"{len(lost)} rows are left out, their videos cannot be read", lost))
    print(f"Wrote {output_dir}" + (f" and uploaded it: {url}" if url else ""))
    return int(bool(lost))


def print_formats() -> int:
    """Print the formats of custom data."""
    for fmt in FORMATS:
        print(f"{fmt.name:14} {'read, written' if fmt.write else 'read':14} {fmt.title}")
    return 0


def _finish(report: Report, rows: dict[str, Dataset], output: Path | None, json: Path | None) -> int:
    """Print and draw what was found, the verdict last, and return the exit code."""
    print_report(report)
    is_written = True
    try:
        if json is not None:
            write_json(json, report.to_dict(), indent=2)
        if output is not None and rows:
            _draw(report, next(iter(rows.values())), output)
    except (OSError, ValueError) as error:
        # A place that cannot be written to, or a suffix of no picture, costs no verdict.
        print(f"not written: {error}")
        is_written = False
    print(report.verdict)
    return int(bool(report.problems) or not is_written)


def _draw(report: Report, rows: Dataset, output: Path) -> None:
    sheet = draw_contact_sheet(rows, load_action_labels(report.dataset, report.data_dir))
    with replacing(output) as partial_path:
        sheet.save(partial_path)
    print(f"Drew frames with their boxes and labels: {output}")


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
    more = and_others(len(counts) - 6)
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
