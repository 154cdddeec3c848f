"""The ways of counting video mAP: how detections become tubes, what overlaps, and what counts in an AP.

A protocol is a frozen dataclass. Its fields are the options of `video_map`; its `link` turns the detections of all
videos into tubes.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classquery.data.metrics.linking import Tube, best_paths, box_iou, greedy_tubes, pack_rows, tube_iou


logger = logging.getLogger(__name__)

_PAIRS_AT_ONCE = 2_000_000  # Pairs of boxes compared at once: more need more memory and are not faster.
_JUMP_IOU = 0.3  # Consecutive boxes that overlap less are a jump to something else.
_LARGEST_FRACTION = 2.0  # The largest coordinate of boxes in pixels is larger.
_ANY_LABEL, _NO_LABEL = -2, -1


class VideoDetections(NamedTuple):
    """Detections in all videos, D rows."""

    names: list  # Names of the videos, in ascending order.
    video: np.ndarray  # (D,) indices of names.
    frame: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4), float64.
    scores: np.ndarray  # (D, K)
    actor: np.ndarray | None  # (D,)


@dataclass(frozen=True)
class TubeProtocol(ABC):
    """How tubes are compared and counted: the base of all protocols.

    Args:
        spatial_only: Tubes overlap as much as their boxes in common frames do; when they start and end is ignored.
        extra_pixel: Added to the widths and heights of boxes: 1 where a box ends with the pixel at x2.
        count_last_frame: Whether a tube of m frames lasts m frames, or m - 1, from the first to the last.
        min_common_frames: Tubes with fewer common frames do not overlap, unless `spatial_only`.
        match_remaining: A tube is compared with what tubes of higher score have left of the ground truth. Otherwise it
            is compared with all of it, and is a false positive if the best is taken.
        recall_epsilon: Added to the number of ground-truth tubes, by which recall is divided.
        count_missing_labels: A label without ground truth has AP 0 and counts in the mean. Otherwise it is left out.
    """

    spatial_only: bool = False
    extra_pixel: float = 0.0
    count_last_frame: bool = True
    min_common_frames: int = 1
    match_remaining: bool = False
    recall_epsilon: float = 0.0
    count_missing_labels: bool = False

    @abstractmethod
    def link(self, found: VideoDetections) -> list[Tube]:
        """Return tubes with `"video"` and `"label"`, by label, then by video, then in the order they were found."""

    def adapted(self, found: VideoDetections, truth: Sequence[Tube]) -> "TubeProtocol":
        """Fill in what depends on the data; raise ValueError if this protocol cannot count them."""
        return self

    def true_names(self, found: VideoDetections, truth: Sequence[Tube]) -> dict:
        """Map the names of videos with detections to those of the ground truth they are compared with, if any."""
        return {name: name for name in found.names}

    def overlap(self, tube: Tube, true_tube: Tube) -> float:
        """Overlap in [0, 1] of a linked tube and one of the ground truth."""
        return tube_iou(
            tube,
            true_tube,
            spatial_only=self.spatial_only,
            extra_pixel=self.extra_pixel,
            count_last_frame=self.count_last_frame,
            min_common_frames=self.min_common_frames,
        )


@dataclass(frozen=True)
class StandardProtocol(TubeProtocol):
    """Video mAP of ACT-detector (Kalogeiton et al., 2017), with the constants and the overlap of MultiSports (2021).

    For each label, the boxes of a frame are thinned out and linked by `link_greedily`. Boxes with x2 <= x1 or y2 <= y1
    are dropped before.

    Args:
        frame_nms_iou: A box is dropped if it overlaps one with a higher score by more.
        max_boxes_per_frame: Of what is left, this many boxes with the highest scores are linked.
        link_iou: Smallest IoU of consecutive boxes of a tube.
        max_gap: For how many frames in a row a tube may miss.
        min_frames: Shorter tubes are dropped.
        min_score: Tubes with a lower mean score are dropped.
    """

    count_last_frame: bool = False

    frame_nms_iou: float = 0.6
    max_boxes_per_frame: int = 10
    link_iou: float = 0.5
    max_gap: int = 0
    min_frames: int = 15
    min_score: float = 0.005

    def link(self, found: VideoDetections) -> list[Tube]:
        has_area = (found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)
        frames = _FramesOfVideos.collect(found, np.flatnonzero(has_area), found.frame)
        labels, videos = self._problems(found, frames)
        linked = {}
        for chunk in frames.chunks(videos):
            rows = self._boxes_to_link(found, frames.rows_of(videos[chunk]), labels[chunk])
            tubes = greedy_tubes(
                found.boxes[rows],
                found.scores[rows, labels[chunk, None, None]],
                rows >= 0,
                frames.numbers_of(videos[chunk]),
                self.link_iou,
                self.max_gap,
            )
            for problem, tube_rows in _rows_of_tubes(rows, tubes, self.min_frames):
                tube = _tube(found, videos[chunk[problem]], labels[chunk[problem]], tube_rows)
                if tube["score"] >= self.min_score:
                    linked.setdefault(chunk[problem], []).append(tube)
        return [tube for problem in sorted(linked) for tube in linked[problem]]

    def _problems(self, found: VideoDetections, frames: "_FramesOfVideos") -> tuple[np.ndarray, np.ndarray]:
        """Labels (P,) and videos (P,) that may have a tube: without a score of `min_score`, no mean reaches it."""
        by_video = np.argsort(found.video, kind="stable")
        start = np.searchsorted(found.video[by_video], np.arange(len(found.names)))
        best = np.maximum.reduceat(found.scores[by_video], start).T
        return np.nonzero((best >= self.min_score) & (frames.count >= max(self.min_frames, 1)))

    def _boxes_to_link(self, found: VideoDetections, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Thin out the boxes of each frame: (P, T, Q) -> (P, T, fewer), in descending order of score."""
        scores = np.where(rows >= 0, found.scores[rows, labels[:, None, None]], -1)
        rows = np.take_along_axis(rows, np.argsort(-scores, axis=-1, kind="stable"), axis=-1)
        boxes, kept = found.boxes[rows], rows >= 0
        for box in range(rows.shape[-1] - 1):
            overlaps = box_iou(boxes[:, :, box, None], boxes[:, :, box + 1 :]) > self.frame_nms_iou
            kept[:, :, box + 1 :] &= ~(kept[:, :, box, None] & overlaps)
        return _moved_to_front(rows, kept)[:, :, : self.max_boxes_per_frame]


@dataclass(frozen=True)
class ClassQueryUcfProtocol(TubeProtocol):
    """The published video mAP of ClassQuery on UCF101-24.

    For each label, the candidates are linked through the whole video by `link_best_paths`, where frames without any
    take those of the nearest frame that has some. Paths that overlap are thinned out, and what is left is cut to the
    length of the action. The defaults reproduce the published numbers, surprises included; each has an option that
    undoes it.

    Args:
        actor_threshold: Candidates have at least this actor score. None: everything is a candidate.
        top_label_only: A detection is a candidate only for the label with its highest score.
        max_boxes_per_frame: Only the first rows of a frame count, as many as the published models have queries: this
            removes what a sampler repeated. None: all.
        key_digits: Frames are sorted as text of at least so many digits, so 1000 comes before 101. None: as numbers.
        number_frames_by_row: The frames of a video that have detections are taken for the first, second, ... frame of
            the video, whatever their numbers. Otherwise they keep their numbers.
        first_frame: Number of the first frame of a video in the detections. None: the smallest in all videos.
        first_true_frame: The same for the ground truth and the tubes that are returned.
        max_tubes: Paths of a label in a video, at most. None: any number.
        refill: When a path has taken the last candidate of a frame, the next one may take those that are left in the
            nearest frame. Otherwise there is no further path.
        tube_nms_iou: A path is dropped if its mean IoU with one of higher score is larger.
        trim: What is kept of a path. "count": as many frames as have candidates anywhere, from the first of them on.
            "window": about as many, around those with high scores, see `_best_window`; but "count" if the first frame
            of the video has no candidates. "span": from the first to the last frame with candidates. "none": all.
        trim_offset: "count" begins so many frames late. 1 comes from taking a frame number for an index.
        pair_videos_by_rank: Videos of detections and ground truth are paired by their places in two orders, which
            differ if one name is the beginning of another or a video has no detections. Videos without ground truth
            are left out of that, and integers are always paired by value.
    """

    extra_pixel: float = 1.0
    min_common_frames: int = 2
    match_remaining: bool = True
    recall_epsilon: float = 1e-5
    count_missing_labels: bool = True

    actor_threshold: float | None = 0.7
    top_label_only: bool = True
    max_boxes_per_frame: int | None = 15
    key_digits: int | None = 3
    number_frames_by_row: bool = True
    first_frame: int | None = 1
    first_true_frame: int | None = 1
    max_tubes: int | None = 3
    refill: bool = False
    tube_nms_iou: float = 0.3
    trim: Literal["count", "window", "span", "none"] = "count"
    trim_offset: int = 1
    pair_videos_by_rank: bool = False

    def __post_init__(self):
        if self.trim not in ("count", "window", "span", "none"):
            raise ValueError(f'trim must be "count", "window", "span" or "none", got {self.trim!r}')

    def adapted(self, found: VideoDetections, truth: Sequence[Tube]) -> "ClassQueryUcfProtocol":
        if self.extra_pixel:
            _check_pixels("detections", found.boxes)
            _check_pixels("tubes", [tube["boxes"].max() for tube in truth])
        return replace(
            self,
            first_frame=self._first_number("detections", "first_frame", found.frame),
            first_true_frame=self._first_number("tubes", "first_true_frame", [tube["frames"][0] for tube in truth]),
        )

    def _first_number(self, name: str, option: str, numbers: ArrayLike) -> int:
        """The value of the option, or the smallest of the numbers if it is None."""
        first = getattr(self, option)
        smallest = int(np.min(numbers)) if len(numbers) else 1
        if first is not None and len(numbers) and smallest < first:
            raise ValueError(
                f"{name} have a frame {smallest}, but this protocol counts the frames of a video from {first}; "
                f"pass {option}={smallest} if they count from there"
            )
        return smallest if first is None else first

    def true_names(self, found: VideoDetections, truth: Sequence[Tube]) -> dict:
        if not self.pair_videos_by_rank or not all(isinstance(name, str) for name in found.names):
            return super().true_names(found, truth)
        true_names = sorted({tube["video"] for tube in truth})
        # The frame stands behind the name where detections are sorted, so a_10 comes before a_1.
        names = sorted(set(found.names) & set(true_names), key=lambda name: f"{name}_")
        pairs = dict(zip(names, true_names, strict=False))
        num_mixed_up = sum(name != true_name for name, true_name in pairs.items())
        if num_mixed_up:
            logger.warning(
                "%d of %d videos are compared with the tubes of another one, as in the published evaluation: "
                "pass pair_videos_by_rank=False to pair them by name.",
                num_mixed_up,
                len(names),
            )
        return pairs

    def link(self, found: VideoDetections) -> list[Tube]:
        frames = self._frames(found)
        candidate_label = self._candidate_labels(found)
        labels, videos = _labels_and_videos(found, candidate_label)
        linked = {}
        for chunk in frames.chunks(videos):
            rows = frames.rows_of(videos[chunk])  # (problems, frames, boxes)
            wanted = candidate_label[rows]
            is_candidate = (rows >= 0) & ((wanted == labels[chunk, None, None]) | (wanted == _ANY_LABEL))
            has_candidate = is_candidate.any(axis=-1)
            rows = _moved_to_front(rows, is_candidate)
            paths = self._paths(found, rows, labels[chunk], frames.count[videos[chunk]])
            numbers = frames.numbers_of(videos[chunk])
            for at, problem in enumerate(chunk):
                video, label = videos[problem], labels[problem]
                in_video = slice(frames.count[video])
                linked[problem] = self._tubes(
                    found, video, label, paths[at, :, in_video], has_candidate[at, in_video], numbers[at, in_video]
                )
        return [tube for problem in sorted(linked) for tube in linked[problem]]

    def _frames(self, found: VideoDetections) -> "_FramesOfVideos":
        order = found.frame if self.key_digits is None else _order_as_text(found.frame, self.key_digits)
        frames = _FramesOfVideos.collect(found, np.arange(len(order)), order)
        if self.max_boxes_per_frame is None:
            return frames
        num_ignored = (frames.rows[:, self.max_boxes_per_frame :] >= 0).sum()
        if num_ignored:
            logger.warning(
                "%d of %d detections are ignored because their frame has more than %d of them, as in the published "
                "evaluation: pass max_boxes_per_frame=None to use all.",
                num_ignored,
                len(order),
                self.max_boxes_per_frame,
            )
        return frames._replace(rows=frames.rows[:, : self.max_boxes_per_frame])

    def _candidate_labels(self, found: VideoDetections) -> np.ndarray:
        """The label that each detection is a candidate for, (D,)."""
        labels = np.full(len(found.frame), _ANY_LABEL)
        if self.top_label_only and len(labels):
            labels = found.scores.argmax(axis=1)
        if self.actor_threshold is not None:
            labels = np.where(found.actor >= self.actor_threshold, labels, _NO_LABEL)
        return labels

    def _paths(
        self, found: VideoDetections, rows: np.ndarray, labels: np.ndarray, num_frames: np.ndarray
    ) -> np.ndarray:
        """Find the best paths through the candidates of P problems.

        Args:
            found: All detections.
            rows: Rows of the candidates in each frame, (P, T, Q), filled up with -1.
            labels: Labels, (P,).
            num_frames: Frames of each video, (P,).

        Returns:
            Rows of detections, (P, R, T); -1 for paths that do not exist and behind the end of a video.
        """
        max_tubes = rows.shape[-1] if self.max_tubes is None else self.max_tubes
        if not self.refill:
            return _best_path_rows(found, _filled_from_nearest(rows, num_frames), labels, max_tubes)
        rows = rows.copy()
        paths = np.full((len(rows), max_tubes, rows.shape[1]), -1)
        for tube in range(max_tubes):
            left = np.flatnonzero((rows >= 0).any(axis=(1, 2)))
            filled = _filled_from_nearest(rows[left], num_frames[left])
            paths[left, tube] = _best_path_rows(found, filled, labels[left], max_tubes=1)[:, 0]
            rows[rows == paths[:, tube, :, None]] = -1
        return paths

    def _tubes(
        self,
        found: VideoDetections,
        video: int,
        label: int,
        paths: np.ndarray,
        has_candidate: np.ndarray,
        numbers: np.ndarray,
    ) -> list[Tube]:
        """Finish the tubes of one label in one video of n frames.

        Args:
            found: All detections.
            video: Index of the video.
            label: The label.
            paths: Rows of detections, (R, n); -1 for missing paths.
            has_candidate: Whether a frame has candidates of its own, (n,).
            numbers: Numbers of the frames, (n,).
        """
        rows = paths[paths[:, 0] >= 0]
        boxes, scores = found.boxes[rows], found.scores[rows, label].astype(np.float32)
        numbers = numbers - self.first_frame
        true_numbers = self.first_true_frame + (np.arange(len(numbers)) if self.number_frames_by_row else numbers)
        tubes = []
        for path in self._distinct_paths(boxes, scores):
            kept, path_scores = self._trimmed(boxes[path], scores[path], has_candidate, numbers)
            tubes.append(
                _tube(found, video, label, rows[path, kept], frames=true_numbers[kept], scores=path_scores[kept])
            )
        return tubes

    def _distinct_paths(self, boxes: np.ndarray, scores: np.ndarray) -> list[int]:
        """Thin out paths (R, n, 4) that overlap, in descending order of their mean score."""
        kept = []
        can_overlap = boxes.shape[1] >= self.min_common_frames
        for path in np.argsort(-scores.mean(axis=1), kind="stable"):
            overlaps = box_iou(boxes[kept], boxes[path], self.extra_pixel).mean(axis=1)
            if not (can_overlap and (overlaps > self.tube_nms_iou).any()):
                kept.append(path)
        return kept

    def _trimmed(
        self, boxes: np.ndarray, scores: np.ndarray, has_candidate: np.ndarray, numbers: np.ndarray
    ) -> tuple[slice, np.ndarray]:
        """Return which of the n frames of a tube are kept, and its scores (n,)."""
        candidates = np.flatnonzero(has_candidate)
        first = numbers[candidates[0]] if self.number_frames_by_row else candidates[0]
        if self.trim == "none":
            return slice(None), scores
        if self.trim == "span":
            return slice(candidates[0], candidates[-1] + 1), scores
        if self.trim == "window" and first == 0:
            scores = _negated_at_jumps(boxes, scores, self.extra_pixel)
            return _best_window(scores, len(candidates)), scores
        begin = first + self.trim_offset
        return slice(begin, begin + len(candidates)), scores


@dataclass(frozen=True)
class ClassQueryJhmdbProtocol(ClassQueryUcfProtocol):
    """The published video mAP of ClassQuery on JHMDB-21, where a video has one tube through all of its frames.

    It differs from the one on UCF101-24 only in these options. Thanks to such tubes, any numbering of frames can be
    recognised; the published files count detections from 0 and ground truth from 1.
    """

    spatial_only: bool = True
    actor_threshold: float | None = None
    top_label_only: bool = False
    key_digits: int | None = 2
    first_frame: int | None = None
    first_true_frame: int | None = None
    trim: Literal["count", "window", "span", "none"] = "window"
    trim_offset: int = 0
    pair_videos_by_rank: bool = True


class _FramesOfVideos(NamedTuple):
    """The F frames that have detections, by video, then in the order given for the frames."""

    number: np.ndarray  # (F,)
    rows: np.ndarray  # (F, Q) rows of their detections, filled up with -1.
    start: np.ndarray  # (V,) first frame of each video.
    count: np.ndarray  # (V,) number of frames of each video.

    @classmethod
    def collect(cls, found: VideoDetections, rows: np.ndarray, order: np.ndarray) -> "_FramesOfVideos":
        """Collect the frames of these rows (N,); `order` (D,) sorts the frames of a video."""
        order = order - order.min(initial=0)
        packed = pack_rows(found.video[rows] * (order.max(initial=0) + 1) + order[rows])
        frame_rows = np.where(packed >= 0, rows[packed], -1)
        video = found.video[frame_rows[:, 0]]
        start, stop = (np.searchsorted(video, np.arange(len(found.names)), side=side) for side in ("left", "right"))
        return cls(found.frame[frame_rows[:, 0]], frame_rows, start, stop - start)

    def chunks(self, videos: np.ndarray) -> Iterator[np.ndarray]:
        """Split P problems, one in each of these videos, into parts of similar length that fit into memory."""
        by_length = np.argsort(-self.count[videos], kind="stable")
        begin = 0
        while begin < len(by_length):
            pairs_of_longest = self.count[videos[by_length[begin]]] * self.rows.shape[1] ** 2
            end = begin + max(1, _PAIRS_AT_ONCE // pairs_of_longest)
            yield by_length[begin:end]
            begin = end

    def rows_of(self, videos: np.ndarray) -> np.ndarray:
        """Rows of the detections in each video: (P,) -> (P, T, Q), filled up with -1."""
        in_video = np.arange(self.count[videos].max()) < self.count[videos, None]
        return np.where(in_video[..., None], self.rows[self._positions(videos)], -1)

    def numbers_of(self, videos: np.ndarray) -> np.ndarray:
        """Numbers of the frames of each video: (P,) -> (P, T); any number behind the end."""
        return self.number[self._positions(videos)]

    def _positions(self, videos: np.ndarray) -> np.ndarray:
        position = self.start[videos, None] + np.arange(self.count[videos].max())
        return np.minimum(position, len(self.number) - 1)


def _order_as_text(frame: np.ndarray, num_digits: int) -> np.ndarray:
    """Rank frame numbers as text, written with at least so many digits: (D,) -> (D,)."""
    numbers, which = np.unique(frame, return_inverse=True)
    rank = np.empty(len(numbers), dtype=np.int64)
    rank[np.argsort([f"{number:0{num_digits}d}" for number in numbers])] = np.arange(len(numbers))
    return rank[which]


def _labels_and_videos(found: VideoDetections, candidate_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (P,) and videos (P,) with candidates, by label, then by video."""
    has_candidate = np.zeros((found.scores.shape[1], len(found.names)), dtype=bool)
    for_any, for_one = candidate_label == _ANY_LABEL, candidate_label >= 0
    has_candidate[:, found.video[for_any]] = True
    has_candidate[candidate_label[for_one], found.video[for_one]] = True
    return np.nonzero(has_candidate)


def _moved_to_front(rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Keep some detections of each frame and close up: (P, T, Q), (P, T, Q) -> (P, T, fewer), filled up with -1."""
    order = np.argsort(~kept, axis=-1, kind="stable")[..., : kept.sum(axis=-1).max(initial=0)]
    return np.take_along_axis(np.where(kept, rows, -1), order, axis=-1)


def _filled_from_nearest(rows: np.ndarray, num_frames: np.ndarray) -> np.ndarray:
    """Give frames without candidates those of the nearest frame with some, of two the earlier one.

    Args:
        rows: Rows of the candidates, (P, T, Q), at least one for each of the P problems.
        num_frames: Frames of each video, (P,); those behind the end stay empty.
    """
    frame = np.arange(rows.shape[1])
    has_candidate = (rows >= 0).any(axis=-1)
    before = np.maximum.accumulate(np.where(has_candidate, frame, -len(frame)), axis=1)
    after = np.minimum.accumulate(np.where(has_candidate, frame, 2 * len(frame))[:, ::-1], axis=1)[:, ::-1]
    nearest = np.where(frame - before <= after - frame, before, after)
    filled = np.take_along_axis(rows, nearest[..., None], axis=1)
    return np.where((frame < num_frames[:, None])[..., None], filled, -1)


def _best_path_rows(found: VideoDetections, rows: np.ndarray, labels: np.ndarray, max_tubes: int) -> np.ndarray:
    """Find the best paths through rows of detections, (P, T, Q) -> (P, R, T); -1 where there is none."""
    paths = best_paths(found.boxes[rows], found.scores[rows, labels[:, None, None]], rows >= 0, max_tubes)
    path_rows = np.take_along_axis(rows, paths.swapaxes(1, 2), axis=2).swapaxes(1, 2)
    return np.where(paths >= 0, path_rows, -1)


def _negated_at_jumps(boxes: np.ndarray, scores: np.ndarray, extra_pixel: float) -> np.ndarray:
    """Negate the scores of boxes that hardly overlap the one before: (n, 4), (n,) -> (n,)."""
    jumps = box_iou(boxes[1:], boxes[:-1], extra_pixel) < _JUMP_IOU
    return np.where(np.concatenate([[False], jumps]), -scores, scores)


def _best_window(scores: np.ndarray, num_frames: int) -> slice:
    """Find where the scores of a tube (n,) are high.

    The run whose scores exceed the mean by the largest sum is widened or narrowed on both sides to about `num_frames`
    and cut at the ends of the tube, without its last frame. Without such a run (all scores are equal), it is the first
    half of the tube.
    """
    begin, last = _run_of_largest_sum(scores - scores.mean())
    margin = int((num_frames - (last - begin)) / 2)
    return slice(max(begin - margin, 0), max(last + margin, 0))


def _run_of_largest_sum(values: np.ndarray) -> tuple[int, int]:
    """First and last index of the run with the largest sum; (-1, -1) if no sum is positive."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    lowest = np.minimum.accumulate(sums[:-1])
    gains = sums[1:] - lowest
    last = int(gains.argmax())
    if gains[last] <= 0:
        return -1, -1
    return int(np.flatnonzero(sums[: last + 1] == lowest[last])[-1]), last


def _rows_of_tubes(rows: np.ndarray, tubes: np.ndarray, min_frames: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the problem and the rows of each tube with enough frames, from the tube of each detection (P, T, Q)."""
    problem, frame, box = np.nonzero(tubes >= 0)
    tube = problem * (tubes.max(initial=0) + 1) + tubes[problem, frame, box]
    by_tube = np.argsort(tube, kind="stable")
    _, start, length = np.unique(tube[by_tube], return_index=True, return_counts=True)
    for begin, size in zip(start[length >= min_frames], length[length >= min_frames], strict=True):
        of_tube = by_tube[begin : begin + size]
        yield problem[of_tube[0]], rows[problem[of_tube], frame[of_tube], box[of_tube]]


def _tube(
    found: VideoDetections,
    video: int,
    label: int,
    rows: np.ndarray,
    *,
    frames: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Tube:
    """Describe a tube by its detections (n,); frames and scores are theirs if not given."""
    scores = found.scores[rows, label] if scores is None else scores
    return {
        "video": found.names[video],
        "label": int(label),
        "frames": found.frame[rows] if frames is None else frames,
        "boxes": found.boxes[rows],
        "scores": scores,
        "score": float(scores.mean()) if len(scores) else float("nan"),
        "rows": rows,
    }


def _check_pixels(name: str, corners: ArrayLike) -> None:
    if len(corners) and np.max(corners) <= _LARGEST_FRACTION:
        raise ValueError(
            f"boxes of {name} must be in pixels, because this protocol adds one to their sides, but no corner is "
            f"beyond {np.max(corners):g}; multiply fractions by the width and height of the frames that the network "
            "sees, or pass extra_pixel=0"
        )
