"""Video mAP as a module of HF `evaluate`: `evaluate.load(module_path("video_map"))`.

The numbers are those of `classquery.data.metrics.video_map`, which has to be installed.
"""

import datasets
import evaluate
import numpy as np

from classquery.data import metrics


_DESCRIPTION = """
Mean over labels of the average precision of the actions of whole videos, as tubes of boxes: the number published for
UCF101-24 and JHMDB-21, or the standard one of ACT-detector and MultiSports, by the protocol.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One dict per video: `video`, its name, which both sides share; `frames`, (n,) numbers of frames;
        `boxes`, (n, 4) lists of x1, y1, x2, y2; `scores`, (n, K) lists of scores in [0, 1]; `actor`, (n,) scores of
        being an actor, or an empty list for protocols without it.
    references: One dict per video: `video`; `tubes`, a list of dicts of `label`, 0-based, `frames` (m,), ascending,
        and `boxes` (m, 4). A video that is added twice counts once.
    protocol: "standard", "classquery_ucf" or "classquery_jhmdb".
    iou_thresholds: Smallest overlap of a true positive, one or several.
    label_ids: The labels to score, 1-based; by default all.
    options: Of the protocol, see `classquery.data.metrics.video_map`.

Returns:
    `video_map_20`, named after the threshold in percent, one for each; `ap_per_label`; and the linked `tubes`.

Examples:
    >>> from classquery.data.metrics import module_path
    >>> video_map = evaluate.load(module_path("video_map"))
    >>> boxes = [[10.0, 10.0, 50.0, 90.0], [12.0, 10.0, 52.0, 90.0]]
    >>> video_map.add(
    ...     prediction={"video": "v", "frames": [7, 8], "boxes": boxes, "scores": [[0.9], [0.8]], "actor": []},
    ...     reference={"video": "v", "tubes": [{"label": 0, "frames": [7, 8], "boxes": boxes}]},
    ... )
    >>> video_map.compute(protocol="standard", min_frames=1)["video_map_50"]
    1.0
"""
_CITATION = """
@inproceedings{kalogeiton2017action,
  title = {Action Tubelet Detector for Spatio-Temporal Action Localization},
  author = {Kalogeiton, Vicky and Weinzaepfel, Philippe and Ferrari, Vittorio and Schmid, Cordelia},
  booktitle = {ICCV},
  year = {2017},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VideoMap(evaluate.Metric):
    """Video mAP."""

    def _info(self) -> evaluate.MetricInfo:
        text, whole, number = (datasets.Value(kind) for kind in ("string", "int64", "float64"))
        numbers = datasets.List(datasets.List(number))
        tube = {"label": whole, "frames": datasets.List(whole), "boxes": numbers}
        detections = {"frames": datasets.List(whole), "boxes": numbers, "scores": numbers}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"video": text, **detections, "actor": datasets.List(number)},
                    "references": {"video": text, "tubes": datasets.List(tube)},
                }
            ),
        )

    def _compute(self, predictions, references, protocol="standard", iou_thresholds=(0.2, 0.5), **options):
        predictions, references = ({video["video"]: video for video in side} for side in (predictions, references))
        found = [video for video in predictions.values() if video["frames"]]
        detections = {key: [row for video in found for row in video[key]] for key in ("boxes", "scores", "actor")}
        detections["frame"] = [frame for video in found for frame in video["frames"]]
        detections["video"] = np.repeat(
            [video["video"] for video in found] or np.zeros(0, str), [len(video["frames"]) for video in found]
        )
        if len(detections["actor"]) < len(detections["frame"]):
            del detections["actor"]
        tubes = [{**tube, "video": video["video"]} for video in references.values() for tube in video["tubes"]]
        return metrics.video_map(detections, tubes, protocol=protocol, iou_thresholds=iou_thresholds, **options)
