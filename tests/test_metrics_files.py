"""Csv files of detections and ground truth: read as the official evaluation does, or refused by row."""

import gzip
import heapq
import re

import numpy as np
import pytest

from classquery.data.annotations.schema import AnnotationError
from classquery.data.metrics.files import (
    BoxRows,
    FrameNames,
    cap_per_frame,
    dense_scores,
    multi_hot,
    read_detections,
    read_frames,
    read_ground_truth,
)


DETECTION = "v,0902,0.1,0.2,0.3,0.4,12,0.5"


def written(tmp_path, *rows, name="rows.csv"):
    path = tmp_path / name
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "wt") as file:
        file.write("".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_detections_are_read_by_column(tmp_path, name):
    path = written(tmp_path, DETECTION, "", "w,903,0,0,1,1,1,1e-3", "v,902.0,0.5,0.5,0.4,0.4,80,0", name=name)
    names = FrameNames()

    rows = read_detections(path, names)

    assert [names.name(frame) for frame in rows.frame] == ["v,0902", "w,0903", "v,0902"]
    np.testing.assert_array_equal(rows.boxes, [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0.5, 0.5, 0.4, 0.4]])
    np.testing.assert_array_equal(rows.label_id, [12, 1, 80])
    np.testing.assert_array_equal(rows.values, [[0.5], [0.001], [0]])


def test_files_share_the_numbers_of_frames(tmp_path):
    names = FrameNames()
    truth = read_ground_truth(written(tmp_path, "w,0001,0,0,1,1,3", "v,0902,0,0,1,1,3"), names)
    found = read_detections(written(tmp_path, DETECTION), names)
    excluded = read_frames(written(tmp_path, "x,0001", "v,902"), names)

    assert found.frame.tolist() == truth.frame[1:].tolist() == excluded[1:].tolist()
    assert excluded[0] not in truth.frame
    assert names.videos == ["w", "v", "x"]


@pytest.mark.parametrize("person", ["", ",0", ",1.0"])
def test_ground_truth_may_name_the_person(tmp_path, person):
    rows = read_ground_truth(written(tmp_path, "v,0902,0.1,0.2,0.3,0.4,12" + person), FrameNames())

    assert rows.values.shape == (1, 1 if person else 0)


def test_rows_of_a_video_and_a_time_are_frames_without_boxes(tmp_path):
    names = FrameNames()

    rows = read_ground_truth(written(tmp_path, "v,0901", "v,0902,0.1,0.2,0.3,0.4,12,3", "w,7.5"), names)

    assert len(rows.frame) == 1
    assert [names.name(frame) for frame in rows.empty_frames] == ["v,0901", "w,07.5"]


def test_detections_of_tubes_have_frames_and_may_have_actor_scores(tmp_path):
    path = written(tmp_path, "v,7,0.1,0.2,0.3,0.4,12,0.5,0.9")

    rows = read_detections(path, FrameNames(), of_tubes=True)

    assert rows.time.tolist() == [7]
    np.testing.assert_array_equal(rows.values, [[0.5, 0.9]])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("v,0902,0.1,0.2,0.3,0.4,12", "row 2: a row needs 2 or 8 columns (video, timestamp, x1, y1, x2, y2, label_id"),
        ("v,0902,0.1,0.2,0.3,0.4,12,0.5,1", "row 2: a row needs 2 or 8 columns"),
        ("v,soon,0.1,0.2,0.3,0.4,12,0.5", "row 2: timestamp must be a number, got 'soon'"),
        ("v,-1,0.1,0.2,0.3,0.4,12,0.5", "row 2: timestamp is -1 but must be a time in seconds"),
        ("v,0902,0.1,0.2,0.3,nan,12,0.5", "row 2: y2 must be finite, got nan"),
        ("v,0902,0.1,0.2,,0.4,12,0.5", "row 2: x2 must be a number, got ''"),
        ("v,0902,0.1,0.2,0.3,0.4,0,0.5", "row 2: label_id is 0 but must be a whole number from 1"),
        ("v,0902,0.1,0.2,0.3,0.4,1.5,0.5", "row 2: label_id is 1.5 but must be a whole number from 1"),
        ("v,0902,0.1,0.2,0.3,0.4,12,-3.5", "row 2: score is -3.5 but must be in [0, 1]; turn logits into it first"),
        ("v,0902,0.1,0.2,0.3,0.4,12,1.5", "row 2: score is 1.5 but must be in [0, 1]"),
        ("v,later", "row 2: timestamp must be a number, got 'later'"),
    ],
)
def test_wrong_detections_are_named_by_row(tmp_path, row, problem):
    path = written(tmp_path, DETECTION, row, DETECTION)

    with pytest.raises(AnnotationError, match=re.escape(problem)):
        read_detections(path, FrameNames())


def test_all_problems_of_a_file_are_named_at_once(tmp_path):
    path = written(tmp_path, "v,0902,0.1,0.2,0.05,0.4,12,0", "", "v,0902,0.1,0.5,0.3,0.4,12,0", "v,1,0,0,1,1,1,0")

    with pytest.raises(AnnotationError, match=r"(?s)2 problems.*row 1: x2 is 0.05 but.*row 3: y2 is 0.4 but must"):
        read_ground_truth(path, FrameNames())


@pytest.mark.parametrize("row", ["v,0,0.1,0.2,0.3,0.4,12,0.5", "v,1.5,0.1,0.2,0.3,0.4,12,0.5"])
def test_frames_of_tubes_count_from_one(tmp_path, row):
    with pytest.raises(AnnotationError, match="frame is .* but must be a whole number from 1"):
        read_detections(written(tmp_path, row), FrameNames(), of_tubes=True)


def test_missing_and_empty_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        read_detections(tmp_path / "nothing.csv", FrameNames())
    with pytest.raises(AnnotationError, match="is empty: a row is video,"):
        read_detections(written(tmp_path), FrameNames())


# What rows belong together


def box_rows(frame, boxes, label_id, values):
    frame = np.array(frame)
    return BoxRows(frame, frame, frame, np.array(boxes, float), np.array(label_id), np.array(values, float), frame[:0])


def plain_cap(rows, max_rows):
    """The official script: a heap for each frame, filled in the order of the file."""
    heaps = {}
    for row, frame in enumerate(rows.frame.tolist()):
        x1, y1, x2, y2 = rows.boxes[row]
        entry = (rows.values[row, 0], rows.label_id[row], y1, x1, y2, x2, row)
        heap = heaps.setdefault(frame, [])
        if len(heap) < max_rows:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return sorted(entry[-1] for heap in heaps.values() for entry in heap)


@pytest.mark.parametrize("num_levels", [3, 10, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_cap_keeps_the_rows_that_the_official_heap_keeps(seed, num_levels):
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 3, (300, 4))
    scores = rng.integers(0, num_levels, (300, 1)) / num_levels
    rows = box_rows(rng.integers(0, 12, 300), boxes, rng.integers(1, 4, 300), scores)

    kept = cap_per_frame(rows._replace(time=np.arange(300)), max_rows=20)

    assert kept.time.tolist() == plain_cap(rows, 20)


def test_labels_of_a_box_are_collected_and_twins_stay_apart():
    rows = box_rows(
        [1, 1, 1, 2, 1, 1], [[0, 0, 1, 1]] * 5 + [[0, 0, 1, 2]], [1, 3, 3, 1, 3, 2], [[0], [0], [0], [0], [7], [0]]
    )

    first, labels = multi_hot(rows, 3)

    assert first.tolist() == [0, 2, 3, 4, 5]
    assert labels.tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_scores_of_a_box_are_collected():
    rows = box_rows([1, 2, 1], [[0, 0, 1, 1]] * 3, [2, 1, 3], [[0.5], [0.6], [0.7]])

    first, scores = dense_scores(rows, 3)

    assert first.tolist() == [0, 1]
    np.testing.assert_array_equal(scores, [[0, 0.5, 0.7], [0.6, 0, 0]])
