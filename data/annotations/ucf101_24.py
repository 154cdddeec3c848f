"""Reader of the corrected annotations of UCF101-24 as they were published: `pyannot.pkl` or `finalAnnots.mat`.

Both come with https://github.com/gurkirt/corrected-UCF101-Annots and hold the same tubes:

    pyannot.pkl        {video: {"numf", "label", "annotations": [{"label", "sf", "ef", "boxes"}]}}
    finalAnnots.mat    annot: structs of name, num_imgs and tubes: structs of class, sf, ef and boxes

Boxes are x, y, width and height in pixels. The pickle counts frames and classes from 0, with `ef` behind the last one;
the .mat counts both from 1, with `ef` as the last one. `testlist01.txt` beside them, or in `ucfTrainTestlist/`, lists
the test videos; all others are for training.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.matlab import read_mat
from classquery.data.annotations.pickles import as_array, read_pickle
from classquery.data.annotations.schema import AnnotationError, ProblemCollector


TEST_LIST = "testlist01.txt"
UCF101_24_LABELS = tuple(
    """
    Basketball BasketballDunk Biking CliffDiving CricketBowling Diving Fencing FloorGymnastics GolfSwing HorseRiding
    IceDancing LongJump PoleVault RopeClimbing SalsaSpin SkateBoarding Skiing Skijet SoccerJuggling Surfing TennisSwing
    TrampolineJumping VolleyballSpiking WalkingWithDog
    """.split()  # noqa: SIM905
)
# Name, number of frames, and tubes: label and first frame, both from 0, and boxes as stored.
_StoredVideo = tuple[str, Any, Iterator[tuple[int, int, np.ndarray]]]
_RESOLUTION = (240, 320)  # Height and width of all videos; the files do not say it.


def read_corrected_annotations(path: Path) -> dict[str, Any]:
    """Read either file.

    Returns:
        The dict of six of `UCF101v2-GT.pkl`, with the videos of both splits in alphabetical order.

    Raises:
        AnnotationError: If the file is damaged, holds something else, or none of its videos is in the list.
        FileNotFoundError: If there is no list of test videos.
    """
    test_videos = _read_test_list(path)
    videos = _videos_of_mat(path) if path.suffix == ".mat" else _videos_of_pickle(path)
    problems, gttubes, nframes = ProblemCollector(path), {}, {}
    for name, num_frames, tubes in videos:
        with problems.at(name):
            nframes[name], gttubes[name] = _whole(num_frames, "the number of frames"), {}
            for label, first_frame, boxes in tubes:
                gttubes[name].setdefault(label, []).append(_corners(first_frame, boxes))
    problems.raise_if_any()
    if not test_videos & nframes.keys():
        raise AnnotationError(f"{path} has none of the videos of {TEST_LIST}: the two must be of one data set")
    return {
        "labels": list(UCF101_24_LABELS),
        "gttubes": gttubes,
        "nframes": nframes,
        "train_videos": [sorted(nframes.keys() - test_videos)],
        "test_videos": [sorted(nframes.keys() & test_videos)],
        "resolution": dict.fromkeys(nframes, _RESOLUTION),
    }


def _read_test_list(path: Path) -> set[str]:
    candidates = [path.parent / folder / TEST_LIST for folder in (".", "ucfTrainTestlist", "splitfiles")]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path.name} does not say what is for testing: put {TEST_LIST} beside it")
    names = (line.split()[0] for line in found.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name.removesuffix(".avi") for name in names}


def _videos_of_pickle(path: Path) -> Iterator[_StoredVideo]:
    """Yield each video."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} must hold a dict, got {type(content).__name__}")
    for name, video in content.items():
        tubes = video.get("annotations") if isinstance(video, dict) else None
        if not isinstance(name, str) or not isinstance(tubes, list):
            raise AnnotationError(f"{path} must hold a dict of 'annotations' for each video, see {str(name)[:200]!r}")
        yield name, video.get("numf"), (_tube(tube, "label", 0) for tube in tubes)


def _videos_of_mat(path: Path) -> Iterator[_StoredVideo]:
    videos = read_mat(path).get("annot")
    if not isinstance(videos, list):
        raise AnnotationError(f"{path} must hold structs as the variable 'annot'")
    for number, video in enumerate(videos, start=1):
        name, tubes = (video.get("name"), video.get("tubes")) if isinstance(video, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(tubes, list):
            raise AnnotationError(f"{path} must have a name and tubes in annot({number})")
        yield name, video.get("num_imgs"), (_tube(tube, "class", 1) for tube in tubes)


def _tube(tube: Any, label: str, first: int) -> tuple[int, int, np.ndarray]:
    """Return the label and the first frame, counted from 0, and the boxes of a tube that is counted from `first`."""
    if not isinstance(tube, Mapping) or not {label, "sf", "ef", "boxes"} <= tube.keys():
        raise AnnotationError(f"a tube must have {label}, sf, ef and boxes")
    start, end = _whole(tube["sf"], "sf") - first, _whole(tube["ef"], "ef")
    boxes = as_array(tube["boxes"])
    if boxes is None or boxes.shape != (end - start, 4) or boxes.dtype.kind not in "iuf":
        found = type(tube["boxes"]).__name__ if boxes is None else f"{boxes.dtype} {boxes.shape}"
        raise AnnotationError(f"frames {start} to {end - 1} need as many boxes x, y, w, h, got {found}")
    return _whole(tube[label], label) - first, start, boxes


def _whole(value: Any, name: str) -> int:
    """Return a number that may be stored as an array of one."""
    stored = as_array(value)
    array = np.asarray(value if stored is None else stored)
    if array.size != 1 or array.dtype.kind not in "iuf" or array.item() % 1:
        raise AnnotationError(f"{name} must be a whole number, got {str(value)[:200]}")
    return int(array.item())


def _corners(first_frame: int, boxes: np.ndarray) -> np.ndarray:
    """Return int64 or float64 (n, 5): the frame from 1, x1, y1, x2, y2.

    Most boxes are stored in 8 bits, where left and width add up to 200 + 100 = 44.
    """
    boxes = boxes.astype(np.float64 if boxes.dtype.kind == "f" else np.int64)
    frames = np.arange(first_frame + 1, first_frame + 1 + len(boxes))
    return np.column_stack([frames, boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
