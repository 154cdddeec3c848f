"""Frame mAP as a module of HF `evaluate`: `evaluate.load(module_path("frame_map"))`.

The numbers are those of `classquery.data.metrics.frame_map`, which has to be installed.
"""

import datasets
import evaluate
import numpy as np

from classquery.data import metrics


_DESCRIPTION = """
Mean over labels of the average precision of detected actors and their actions on single frames: the number published
for AVA, UCF101-24 and JHMDB-21. Counted as by the official evaluation of AVA, but without its cap of 50.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One dict per frame: `frame`, its name, which both sides share; `boxes`, (n, 4) lists of x1, y1, x2,
        y2; `scores`, (n, K) lists of scores in [0, 1], one for each label.
    references: One dict per frame: `frame`; `boxes`, (m, 4); `labels`, (m, K) lists of 0 and 1. A frame that is added
        twice counts once, so what a sampler repeats does no harm.
    iou_threshold: Smallest IoU of a true positive, or several.
    label_ids: The labels to score, 1-based; by default all.

Returns:
    `frame_map_50`, named after the threshold in percent, and `ap_per_label`, with NaN for labels without ground truth.

Examples:
    >>> from classquery.data.metrics import module_path
    >>> frame_map = evaluate.load(module_path("frame_map"))
    >>> boxes = [[10.0, 10.0, 50.0, 90.0]]
    >>> frame_map.add(
    ...     prediction={"frame": "v_0902", "boxes": boxes, "scores": [[0.9, 0.2]]},
    ...     reference={"frame": "v_0902", "boxes": boxes, "labels": [[1, 0]]},
    ... )
    >>> frame_map.compute()["frame_map_50"]
    1.0
"""
_CITATION = """
@inproceedings{gu2018ava,
  title = {{AVA}: A Video Dataset of Spatio-temporally Localized Atomic Visual Actions},
  author = {Gu, Chunhui and others},
  booktitle = {CVPR},
  year = {2018},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class FrameMap(evaluate.Metric):
    """Frame mAP."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.List(datasets.List(datasets.Value("float64")))
        flags = datasets.List(datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"frame": datasets.Value("string"), "boxes": numbers, "scores": numbers},
                    "references": {"frame": datasets.Value("string"), "boxes": numbers, "labels": flags},
                }
            ),
        )

    def _compute(self, predictions, references, iou_threshold=0.5, label_ids=None):
        return metrics.frame_map(
            _table(predictions, "scores"),
            _table(references, "labels"),
            iou_threshold=iou_threshold,
            label_ids=label_ids,
        )


def _table(frames, value_key):
    """One row per box, from one dict per frame."""
    frames = list({frame["frame"]: frame for frame in reversed(frames)}.values())[::-1]
    rows = [frame for frame in frames if frame["boxes"]]
    names = np.repeat([frame["frame"] for frame in rows], [len(frame["boxes"]) for frame in rows])
    table = {key: [row for frame in rows for row in frame[key]] for key in ("boxes", value_key)}
    return {"frame": names if rows else []} | table
