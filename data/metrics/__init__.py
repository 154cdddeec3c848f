"""How good are detections? Frame mAP and video mAP, what they are made of, and what costs them."""

from classquery.data.metrics.analysis import analyze
from classquery.data.metrics.frame import ava_label_ids, frame_map
from classquery.data.metrics.linking import link_best_paths, link_greedily, tube_iou
from classquery.data.metrics.video import tube_map, video_map


__all__ = [
    "analyze",
    "ava_label_ids",
    "frame_map",
    "link_best_paths",
    "link_greedily",
    "tube_iou",
    "tube_map",
    "video_map",
]
