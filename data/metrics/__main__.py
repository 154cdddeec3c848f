r"""Score detections of any model, from files.

    python -m classquery.data.metrics --dataset ava --ground_truth ava_val_v2.2.csv --detections detections.csv \
        --exclude ava_val_excluded_timestamps_v2.2.csv
    python -m classquery.data.metrics --dataset ucf101_24 --ground_truth UCF101v2-GT.pkl \
        --detections eval_predictions.parquet --protocol classquery_ucf --report out

Detections are a csv file, whose columns docs/metrics.md describes, the `eval_predictions.parquet` that
`run_action_detection.py --do_eval` writes, or what the script of MultiSports scores: `frame_detections.pkl`, with
`--tubes video_detections.pkl` for tubes that are linked already, or the folder of both. Ground truth is the csv of AVA
or the pickle of the other data sets.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from classquery.data.names import ProtocolName, TubeDatasetName


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m classquery.data.metrics") -> None:
    """Score what the command line asks for."""
    options = parse_arguments(arguments, prog)
    # What it takes is imported when it is known what to do: help texts do without.
    importlib.import_module("classquery.data.metrics.commands").score(options)


def parse_arguments(
    arguments: Sequence[str] | None = None, prog: str = "python -m classquery.data.metrics"
) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, choices=["ava", *get_args(TubeDatasetName)])
    parser.add_argument(
        "--ground_truth", required=True, type=Path, help="csv of AVA, or pickle of the other data sets"
    )
    parser.add_argument("--detections", required=True, type=Path, help="csv, eval_predictions.parquet, or .pkl")
    parser.add_argument(
        *("--iou_thresholds", "--iou_threshold"),
        type=float,
        nargs="+",
        help="default: 0.5 for frame mAP; for video mAP 0.2, 0.5, 0.75 and the mean over 0.5, 0.55, ... 0.95",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write metrics and AP of all labels there")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write an analysis of the errors there")
    _add_ava_arguments(parser.add_argument_group("ava"))
    _add_tube_arguments(parser.add_argument_group("other data sets"))
    options = parser.parse_args(arguments)
    only_ava = options.exclude or options.label_map or options.official_cap or options.annotated_only
    if options.dataset != "ava" and only_ava:
        parser.error("--exclude, --label_map, --official_cap and --annotated_only are for --dataset ava")
    if options.dataset == "ava" and (options.protocol or options.shortest_edge or options.fold or options.tubes):
        parser.error("--protocol, --fold, --shortest_edge and --tubes are for the data sets with tubes")
    return options


def _add_ava_arguments(ava: Any) -> None:
    ava.add_argument("--exclude", type=Path, help="csv of keyframes that do not count: video, timestamp")
    ava.add_argument("--label_map", type=Path, help=".pbtxt of the labels that count; default: AVA's 60")
    ava.add_argument(
        "--official_cap",
        action="store_true",
        help="of each keyframe, count only the 50 rows with the highest scores, as the official script does",
    )
    ava.add_argument(
        "--annotated_only",
        action="store_true",
        help="leave out detections on keyframes that the ground truth does not list, as the official script has done "
        "since May 2020; by default they are false positives",
    )


def _add_tube_arguments(tubes: Any) -> None:
    tubes.add_argument(
        "--protocol", choices=get_args(ProtocolName), help="of video mAP; default: that of the published numbers"
    )
    tubes.add_argument(
        "--tubes", type=Path, metavar="PKL", help="linked tubes to score instead of linking the detections"
    )
    tubes.add_argument("--fold", type=int, default=0, help="split of JHMDB-21: 0, 1 or 2")
    tubes.add_argument(
        "--shortest_edge",
        type=int,
        help="short side in pixels of the frames that the network saw; the published protocols count in these. "
        "default: 224 for UCF101-24, 256 otherwise",
    )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
