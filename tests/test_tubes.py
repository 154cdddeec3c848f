"""The readers of UCF101-24, JHMDB-21 and MultiSports: good files, bad ones, and files that would run code."""

import logging
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from classquery.data.annotations.matlab import read_mat
from classquery.data.annotations.schema import ACTION_FEATURES, AnnotationError
from classquery.data.annotations.tubes import (
    load_jhmdb_21,
    load_jhmdb_21_labels,
    load_multisports,
    load_multisports_labels,
    load_ucf101_24,
    load_ucf101_24_labels,
)


BIKE, DIVE_1, DIVE_2 = "Biking/v_Biking_g01_c01", "Diving/v_Diving_g01_c01", "Diving/v_Diving_g01_c02"


def tube(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def annotations() -> dict[str, Any]:
    """Three videos of 320x240; one has two tubes, one of them in the middle, without its frame 4."""
    return {
        "labels": ["Biking", "Diving"],
        "gttubes": {
            BIKE: {
                0: [
                    tube((1, 0, 24, 160, 240), (2, 32, 24, 192, 240)),
                    tube((3, 10, 20, 30, 40), (5, 11, 21, 31, 41)),
                ]
            },
            DIVE_1: {1: [tube((1, 16, 12, 32, 24))]},
            DIVE_2: {1: [tube((7, 16, 12, 32, 24))]},
        },
        "nframes": {BIKE: 6, DIVE_1: 1, DIVE_2: 7},
        "train_videos": [[DIVE_1, BIKE]],
        "test_videos": [[DIVE_2]],
        "resolution": {BIKE: (240, 320), DIVE_1: (240, 320), DIVE_2: (240, 320)},
    }


def write(folder: Path, content: Any, *, name: str = "UCF101v2-GT.pkl", protocol: int = 4) -> Path:
    (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def write_videos(folder: Path, *names: str) -> None:
    """Empty files, and empty folders where the name has no suffix: nobody opens them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()


def load(folder: Path, split: str = "train", **options: Any) -> list[dict[str, Any]]:
    return list(load_ucf101_24(folder, split, require_videos=False, **options))


def test_a_row_is_a_video_with_its_tubes(tmp_path):
    dataset = load_ucf101_24(write(tmp_path, annotations()), "train", require_videos=False)

    row = dataset[1]
    assert dataset.features == ACTION_FEATURES
    assert dataset["clip_id"][:] == [DIVE_1, BIKE]
    assert (row["num_frames"], row["height"], row["width"]) == (6, 240, 320)
    assert [(t["track_id"], t["labels"], t["frames"]) for t in row["tubes"]] == [(0, [0], [0, 1]), (1, [0], [2, 4])]
    np.testing.assert_allclose(row["tubes"][0]["boxes"], [[0, 0.1, 0.5, 1], [0.1, 0.1, 0.6, 1]], atol=1e-7)
    assert {row[name] for name in ("fps", "timestamp", "video_seconds", "center_frame")} == {None}


@pytest.mark.parametrize("split", ["validation", "val", "test"])
def test_test_videos_are_the_validation_split(tmp_path, split):
    assert [row["clip_id"] for row in load(write(tmp_path, annotations()), split)] == [DIVE_2]


def test_rows_of_a_tube_are_sorted_by_frame(tmp_path):
    content = annotations()
    content["gttubes"][DIVE_2][1] = [tube((6, 60, 0, 61, 240), (2, 20, 0, 21, 240), (4, 40, 0, 41, 240))]

    (row,) = load(write(tmp_path, content), "val")

    assert row["tubes"][0]["frames"] == [1, 3, 5]
    np.testing.assert_allclose([box[0] * 320 for box in row["tubes"][0]["boxes"]], [20, 40, 60], atol=1e-4)


def test_boxes_are_cut_off_at_the_edges_of_the_frame(tmp_path):
    content = annotations()
    content["gttubes"][DIVE_2][1] = [tube((1, -3, 12, 330, 250))]

    (row,) = load(write(tmp_path, content), "val")

    np.testing.assert_allclose(row["tubes"][0]["boxes"], [[0, 0.05, 1, 1]], atol=1e-7)


def test_labels_are_those_of_the_pickle(tmp_path):
    content = annotations()
    for name in ("UCF101v2-GT.pkl", "JHMDB-GT.pkl", "multisports_GT.pkl"):
        write(tmp_path, content, name=name)

    for load_labels in (load_ucf101_24_labels, load_jhmdb_21_labels, load_multisports_labels):
        assert load_labels(tmp_path) == {0: "Biking", 1: "Diving"}


def test_videos_are_folders_of_frames_or_files(tmp_path):
    write(tmp_path, annotations())
    write_videos(
        tmp_path, f"rgb-images/{BIKE}", f"brox-images/{DIVE_1}", f"UCF-101/{BIKE}.avi", f"videos/{DIVE_1}.MP4"
    )

    rows = load_ucf101_24(tmp_path, "train")

    assert rows["video"][:] == [str(tmp_path / f"videos/{DIVE_1}.MP4"), str(tmp_path / f"rgb-images/{BIKE}")]
    assert rows["source"][:] == ["video", "frames"]


def test_multisports_has_its_videos_in_trainval(tmp_path):
    write(tmp_path, annotations(), name="multisports_GT.pkl")
    write_videos(tmp_path, f"trainval/{BIKE}.mp4", f"trainval/{DIVE_1}.mp4")

    assert load_multisports(tmp_path, "train")["video"][1] == str(tmp_path / f"trainval/{BIKE}.mp4")


def test_jhmdb_has_folds(tmp_path):
    content = annotations()
    content["train_videos"] = [[DIVE_1, BIKE], [BIKE, DIVE_2], [DIVE_1, DIVE_2]]
    content["test_videos"] = [[DIVE_2], [DIVE_1], [BIKE]]
    write(tmp_path, content, name="JHMDB-GT.pkl")
    write_videos(tmp_path, f"Frames/{BIKE}", f"Frames/{DIVE_1}", f"Frames/{DIVE_2}")

    assert load_jhmdb_21(tmp_path, "validation", fold=2)["clip_id"][:] == [BIKE]
    assert load_jhmdb_21(tmp_path, "train", fold=1)["clip_id"][:] == [BIKE, DIVE_2]
    with pytest.raises(ValueError, match="folds 0 to 2, got 3"):
        load_jhmdb_21(tmp_path, "train", fold=3)


def test_the_pickle_itself_may_be_given(tmp_path):
    path = write(tmp_path, annotations(), name="renamed.pkl") / "renamed.pkl"
    write_videos(tmp_path, f"{BIKE}.avi", f"{DIVE_1}.avi")

    assert load_ucf101_24(path, "train")["video"][0] == str(tmp_path / f"{DIVE_1}.avi")


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'trainval'"):
        load(write(tmp_path, annotations()), "trainval")


def test_missing_pickle_is_named_with_its_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"JHMDB-GT\.pkl.*https://"):
        load_jhmdb_21(tmp_path, "train")


def test_missing_videos_are_listed_or_null(tmp_path):
    write_videos(write(tmp_path, annotations()), f"videos/{DIVE_1}.avi", f"videos/{BIKE}.txt")

    with pytest.raises(FileNotFoundError, match=rf"1 of 2 videos .*rgb-images, videos.*\.avi.*: {BIKE}$"):
        load_ucf101_24(tmp_path, "train")
    rows = load_ucf101_24(tmp_path, "train", require_videos=False)
    assert rows["source"][:] == ["video", None]
    assert rows["video"][1] is None


# Annotations that cannot be true


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("nframes", 0, "nframes must be a positive whole number, got 0"),
        ("nframes", "7", "nframes must be a positive whole number, got 7"),
        ("resolution", (240,), r"resolution must be \(height, width\) .* got \(240,\)"),
        ("resolution", (0, 320), "resolution"),
        ("gttubes", None, "gttubes must have a dict"),
        ("gttubes", {1: tube((1, 0, 0, 9, 9))}, "gttubes must have a dict"),
        ("gttubes", {2: [tube((1, 0, 0, 9, 9))]}, "unknown label 2, there are 0 to 1"),
        ("gttubes", {"Diving": [tube((1, 0, 0, 9, 9))]}, "unknown label 'Diving'"),
        ("gttubes", {1: [tube((1, 0, 0, 9))]}, r"tube 0 of Diving: .*\(n, 5\).* got float32 \(1, 4\)"),
        ("gttubes", {1: [[[1, 0, 0, 9, 9]]]}, r"\(n, 5\).* got list"),
        ("gttubes", {1: [np.array([["1", "0", "0", "9", "9"]])]}, "array of numbers"),
        ("gttubes", {1: [np.zeros((0, 5))]}, "at least one box"),
        ("gttubes", {1: [tube((1, 0, 0, np.nan, 9))]}, "finite"),
        ("gttubes", {1: [tube((0, 0, 0, 9, 9))]}, "whole numbers from 1 to 7 .* got 0"),
        ("gttubes", {1: [tube((8, 0, 0, 9, 9))]}, "from 1 to 7 .* got 8"),
        ("gttubes", {1: [tube((1.5, 0, 0, 9, 9))]}, "got 1.5"),
        ("gttubes", {1: [tube((1, 0, 0, 9, 9), (1, 0, 0, 9, 9))]}, "2 boxes for 1 frames"),
        ("gttubes", {1: [tube((3, 9, 0, 9, 9))]}, r"1 box has no area .* \(9.0, 0.0, 9.0, 9.0\) in frame 3"),
        ("gttubes", {1: [tube((3, 0, 9, 9, 2), (4, 0, 0, 9, 9))]}, "1 box has no area"),
        ("gttubes", {1: [tube((3, 320, 0, 330, 9), (4, 0, -9, 9, 0))]}, "2 boxes have no area"),
    ],
)
def test_problem_is_named_with_its_video(tmp_path, part, value, message):
    content = annotations()
    content[part][DIVE_2] = value

    with pytest.raises(AnnotationError, match=rf"(?s)1 problem in .*UCF101v2-GT\.pkl:\n  {DIVE_2}.*{message}"):
        load(write(tmp_path, content), "val")


def test_video_of_the_split_without_annotations_is_a_problem(tmp_path):
    content = annotations()
    content["test_videos"][0].append("Surfing/v_Surfing_g01_c01")

    with pytest.raises(AnnotationError, match="Surfing/v_Surfing_g01_c01: nframes .* got None"):
        load(write(tmp_path, content), "val")


def test_video_that_a_split_lists_twice_is_a_problem(tmp_path):
    content = annotations() | {"test_videos": [[DIVE_2, DIVE_2]]}

    with pytest.raises(AnnotationError, match=f"{DIVE_2}: the split lists it twice"):
        load(write(tmp_path, content), "val")


def test_all_problems_of_a_split_are_reported_at_once(tmp_path):
    content = annotations()
    content["gttubes"][BIKE][0] = [tube((9, 0, 0, 9, 9)), tube((1, 0, 0, 9, 9)), tube((1, 5, 0, 5, 9))]
    content["nframes"][DIVE_1] = -1
    content["nframes"][DIVE_2] = -1  # Of the other split.

    with pytest.raises(AnnotationError) as error:
        load(write(tmp_path, content))

    first, *lines = str(error.value).splitlines()
    assert first.startswith("3 problems in ")
    places = [DIVE_1, f"{BIKE}, tube 0 of Biking", f"{BIKE}, tube 2 of Biking"]
    assert [line.split(":")[0].strip() for line in lines] == places


def test_empty_boxes_are_dropped_when_asked_for(tmp_path, caplog):
    content = annotations()
    content["gttubes"][DIVE_2][1] = [tube((3, 9, 0, 9, 9), (4, 0, 0, 9, 9)), tube((1, 5, 0, 5, 9))]

    with caplog.at_level(logging.WARNING):
        (row,) = load(write(tmp_path, content), "val", drop_empty_boxes=True)

    assert [(t["track_id"], t["frames"]) for t in row["tubes"]] == [(0, [3])]
    assert f"{DIVE_2}, tube 0 of Diving: 1 box has no area" in caplog.text
    assert f"{DIVE_2}, tube 1 of Diving" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dict, got list"),
        ({"labels": []}, "must hold a dict as 'gttubes', got nothing"),
        (annotations() | {"labels": "Biking"}, "must hold a list as 'labels', got str"),
        (annotations() | {"labels": [b"Biking"]}, "must hold names as 'labels'"),
        (annotations() | {"train_videos": [BIKE]}, "lists of names in both lists of videos"),
        (annotations() | {"test_videos": [[BIKE, {}]]}, "lists of names in both lists of videos"),
    ],
)
def test_pickle_of_something_else_is_refused(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        load(write(tmp_path, content))


# Pickles


class Attack:
    """Writes a file when it is unpickled by `pickle.load`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(5))
def test_pickle_that_runs_code_is_refused(tmp_path, protocol):
    attack = annotations() | {"extra": Attack(tmp_path / "hacked")}
    write(tmp_path, attack, protocol=protocol)

    with pytest.raises(AnnotationError, match=r"asks for (posix|nt)\.mkdir, and only plain values and arrays"):
        load(tmp_path)

    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("function", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile"])
def test_pickle_that_names_another_function_is_refused(tmp_path, function):
    module, name = function.rsplit(".", 1)
    (tmp_path / "UCF101v2-GT.pkl").write_bytes(f"c{module}\n{name}\n.".encode())

    with pytest.raises(AnnotationError, match=f"asks for {function}"):
        load(tmp_path)


def test_pickle_that_changes_a_type_of_numpy_leaves_it_alone(tmp_path):
    """numpy's own loader gives the flags (63) to float32 itself, because it is no copy (0), and breaks the process."""
    (tmp_path / "UCF101v2-GT.pkl").write_bytes(b"cnumpy\ndtype\n(S'f4'\nI0\nI0\ntR(I3\nS'<'\nNNNI-1\nI-1\nI63\ntb.")

    with pytest.raises(AnnotationError, match="must hold a dict"):
        load(tmp_path)

    assert np.dtype("float32").flags == 0


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_protocols_with_plain_arrays_are_read(tmp_path, protocol):
    assert len(load(write(tmp_path, annotations(), protocol=protocol))) == 2


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_ones_own_with_other_dicts_and_numbers_are_read(tmp_path, protocol):
    expected, content = load(write(tmp_path, annotations())), annotations()
    tubes = defaultdict(lambda: defaultdict(list))
    for video, of_video in content["gttubes"].items():
        for label, arrays in of_video.items():
            tubes[video][np.int64(label)] += [np.asfortranarray(array) for array in arrays]
    tubes.default_factory = dict  # As a function, it could not be pickled.
    content |= {
        "gttubes": tubes,
        "nframes": OrderedDict((video, np.uint16(length)) for video, length in content["nframes"].items()),
        "resolution": {video: np.array(size) for video, size in content["resolution"].items()},
    }

    assert load(write(tmp_path, OrderedDict(content), protocol=protocol)) == expected


def python_2_pickle(content: Any) -> bytes:
    """Write what Python 2 with numpy 1 wrote in protocol 0, apart from references to values that occur twice."""
    if isinstance(content, dict):
        items = b"".join(python_2_pickle(key) + python_2_pickle(value) + b"s" for key, value in content.items())
        return b"(d" + items
    if isinstance(content, (list, tuple)):
        items = b"".join(map(python_2_pickle, content))
        return b"(" + items + (b"l" if isinstance(content, list) else b"t")
    if isinstance(content, np.ndarray):
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        return (
            array + b"(I1\n" + python_2_pickle(content.shape) + dtype + b"I00\n" + _string(content.tobytes()) + b"tb"
        )
    return b"I%d\n" % content if isinstance(content, int) else _string(content.encode("iso-8859-1"))


def _string(text: bytes) -> bytes:
    return b"S" + repr(text)[1:].encode() + b"\n"


def test_pickle_of_python_2_is_read(tmp_path):
    content = annotations()
    content["labels"][1] = "Plongeon à la française"
    expected = load(write(tmp_path, content))

    (tmp_path / "UCF101v2-GT.pkl").write_bytes(python_2_pickle(content) + b".")

    assert load(tmp_path) == expected
    assert load_ucf101_24_labels(tmp_path)[1] == "Plongeon à la française"


@pytest.mark.parametrize("damage", [lambda good: b"", lambda good: b"no pickle", lambda good: good[: len(good) // 2]])
def test_damaged_pickle_is_refused(tmp_path, damage):
    path = write(tmp_path, annotations()) / "UCF101v2-GT.pkl"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(AnnotationError, match="no pickle of annotations, or a damaged one"):
        load(tmp_path)


# The corrected annotations of UCF101-24


SKI = "Skiing/v_Skiing_g01_c01"
# Left and width, and top and height, add up to more than 8 bits hold: to 290 and 230 at first.
SMALL_BOXES = np.array([(190, 10, 100, 220), (191, 10, 100, 220)], dtype=np.uint8)


def structs(*rows: dict[str, Any]) -> np.ndarray:
    """Structs of MATLAB as scipy writes them."""
    array = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for number, row in enumerate(rows):
        array[number] = tuple(row.values())
    return array


def corrected(folder: Path, *, as_mat: bool) -> Path:
    """Two videos with a tube over the frames 3 and 4, counted from 0; the one of Skiing is for testing."""
    (folder / "testlist01.txt").write_text(f"{SKI}.avi\nArchery/v_Archery_g01_c01.avi\n")
    names = {BIKE: 2, SKI: 16}
    if as_mat:
        tubes = [structs({"ef": 5, "sf": 4, "class": label + 1, "boxes": SMALL_BOXES}) for label in names.values()]
        videos = structs(
            *(
                {"num_imgs": np.uint8(200), "name": name, "tubes": of_video}
                for name, of_video in zip(names, tubes, strict=True)
            )
        )
        savemat(folder / "finalAnnots.mat", {"annot": videos}, do_compression=True)
        return folder
    content = {
        name: {
            "numf": np.uint8(200),
            "label": label,
            "annotations": [{"label": label, "sf": 3, "ef": np.int32(5), "boxes": SMALL_BOXES}],
        }
        for name, label in names.items()
    }
    return write(folder, content, name="pyannot.pkl", protocol=3)


@pytest.mark.parametrize("as_mat", [False, True])
def test_boxes_stored_in_8_bits_do_not_wrap_around(tmp_path, as_mat):
    (train,), (validation,) = (load(corrected(tmp_path, as_mat=as_mat), split) for split in ("train", "validation"))

    assert (train["clip_id"], validation["clip_id"]) == (BIKE, SKI)
    assert (train["num_frames"], train["height"], train["width"]) == (200, 240, 320)
    (tube_of_train,) = train["tubes"]
    assert (tube_of_train["labels"], validation["tubes"][0]["labels"]) == ([2], [16])
    assert tube_of_train["frames"] == [3, 4]
    pixels = np.array(tube_of_train["boxes"]) * [320, 240, 320, 240]
    np.testing.assert_allclose(pixels, [(190, 10, 290, 230), (191, 10, 291, 230)], atol=1e-4)
    assert load_ucf101_24_labels(tmp_path)[16] == "Skiing"


def test_corrected_annotations_need_the_list_of_test_videos(tmp_path):
    (corrected(tmp_path, as_mat=True) / "testlist01.txt").unlink()

    with pytest.raises(FileNotFoundError, match="put testlist01.txt beside it"):
        load(tmp_path)


def test_corrected_tube_with_other_frames_than_boxes_is_a_problem(tmp_path):
    corrected(tmp_path, as_mat=False)
    tube = {"label": 2, "sf": 3, "ef": 9, "boxes": SMALL_BOXES}
    write(tmp_path, {BIKE: {"numf": 20, "annotations": [tube]}}, name="pyannot.pkl")

    with pytest.raises(AnnotationError, match=rf"{BIKE}: frames 3 to 8 need as many boxes.*uint8 \(2, 4\)"):
        load(tmp_path)


@pytest.mark.parametrize("do_compression", [False, True])
def test_matlab_files_are_read_as_scipy_reads_them(tmp_path, do_compression):
    content = {
        "numbers": np.arange(6, dtype=np.float64).reshape(2, 3),
        "small": np.array([[200, 3]], np.uint16),
        "text": "Grün",
        "structs": structs({"a": np.float32(0.5), "b": "x"}, {"a": np.int8(-3), "b": "longer than eight bytes"}),
        "cell": np.array(["one", np.array([2.5])], dtype=object),
    }
    savemat(tmp_path / "a.mat", content, do_compression=do_compression)
    expected = loadmat(tmp_path / "a.mat")

    found = read_mat(tmp_path / "a.mat")

    for name in ("numbers", "small"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["text"] == expected["text"].item() == "Grün"
    assert [(s["a"].item(), s["b"]) for s in found["structs"]] == [(0.5, "x"), (-3, "longer than eight bytes")]
    assert (found["cell"][0], found["cell"][1].item()) == ("one", 2.5)


def test_damaged_matlab_file_is_refused_or_read(tmp_path):
    """Pieces of a file, and files with some bytes changed: none may raise anything else, or ask for much memory."""
    path = corrected(tmp_path, as_mat=True) / "finalAnnots.mat"
    savemat(path, {"annot": loadmat(path)["annot"]}, do_compression=False)
    good, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(good[: rng.integers(100, len(good))] if rng.random() < 0.3 else good)
        for position in rng.integers(100, len(damaged), size=3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load(tmp_path)
        except AnnotationError:
            refused += 1
    assert refused > 100
