"""Data sets with one fault each, made of the demo data; a check finds it and everything else."""

import json
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from partial_annotations import partial_rows
from PIL import Image
from test_cvat import box, document, track

from classquery.data.__main__ import main
from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.preparation.checking import _near_in_spelling, check_dataset
from classquery.data.preparation.contact_sheet import (
    CELL_HEIGHT,
    CELL_WIDTH,
    _choose_frame,
    _named,
    draw_contact_sheet,
)
from classquery.data.video.reader import iterate_frames


@pytest.fixture
def ava_dir(demo_dir, tmp_path):
    """A copy of the demo data that a test may damage: movies demo_train_000 to 002 and demo_val_000."""
    return Path(shutil.copytree(demo_dir, tmp_path / "ava"))


@pytest.fixture(scope="module")
def written_tubes(tmp_path_factory):
    path = tmp_path_factory.mktemp("tubes") / "ucf"
    write_demo_tubes(path, "ucf101_24", num_train_videos=4, num_validation_videos=2)
    return path


@pytest.fixture
def tubes_dir(written_tubes, tmp_path):
    """A copy of demo tubes."""
    return Path(shutil.copytree(written_tubes, tmp_path / "ucf"))


def edit_pickle(folder, edit):
    path = folder / "UCF101v2-GT.pkl"
    annotations = pickle.loads(path.read_bytes())
    edit(annotations)
    path.write_bytes(pickle.dumps(annotations, protocol=2))


def problems_of(dataset, folder, **options):
    report, _ = check_dataset(dataset, folder, **options)
    return {problem.summary: problem.details for problem in report.problems}


def warnings_of(dataset, folder):
    report, _ = check_dataset(dataset, folder)
    return {warning.summary: warning.details for warning in report.warnings}


def test_good_data_are_usable(demo_dir, capsys):
    assert main(["check", "--dataset", "ava", "--data_dir", str(demo_dir)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "usable"


def test_report_counts_what_is_there(demo_dir):
    report, rows = check_dataset("ava", demo_dir)
    train = report.splits["train"]
    actors = [tube for row in load_action_dataset("ava", demo_dir, "train") for tube in row["tubes"]]
    labels = load_action_labels("ava", demo_dir)
    boxes = np.array([tube["boxes"][0] for tube in actors])

    assert (train.num_rows, train.num_videos, train.num_actors) == (len(rows["train"]), 3, len(actors))
    assert train.hours == pytest.approx(3 * 6 / 3600)
    assert train.actors_per_class == {
        name: sum(label in tube["labels"] for tube in actors) for label, name in labels.items()
    }
    assert (train.videos_per_frame_rate, train.videos_per_size) == ({"15.00": 3}, {"128x96": 3})
    assert train.box_corners["x_max"] == pytest.approx([boxes[:, 2].min(), boxes[:, 2].max()], abs=1e-4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert train.box_sizes["area"] == pytest.approx([areas.min(), np.median(areas), areas.max()], abs=1e-4)


def test_actors_of_videos_are_counted_by_their_tracks(tmp_path):
    tubes = [([0], "walk", 3), ([1], "sit", 3), ([0], "walk", 4), ([2], "walk", None), ([3], "walk", None)]
    box = [0.1, 0.1, 0.5, 0.5]
    lines = [
        {"video": "a.mp4", "frames": frames, "boxes": [box], "label": label, "track_id": track}
        for frames, label, track in tubes
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))

    report, _ = check_dataset("custom", tmp_path, splits=("train",))

    assert report.splits["train"].num_actors == 4


def test_all_problems_are_found_at_once(ava_dir, capsys):
    (ava_dir / "videos" / "demo_train_000.mp4").unlink()
    (ava_dir / "videos" / "demo_train_001.mp4").write_text("This is not a video.")
    validation = ava_dir / "videos" / "demo_val_000.mp4"
    validation.write_bytes((ava_dir / "videos" / "demo_train_002.mp4").read_bytes())

    report_file = ava_dir / "report.json"
    code = main(["check", "--dataset", "ava", "--data_dir", str(ava_dir), "--json", str(report_file)])
    printed = capsys.readouterr().out

    assert code == 1
    assert printed.splitlines()[-1] == (
        "not usable: train, missing videos: 1; train, videos that cannot be read: 1; "
        "files of validation with the content of one of train: 1"
    )
    assert "demo_train_001.mp4: it is not a video" in printed
    report = json.loads(report_file.read_text())
    assert [problem["details"] for problem in report["problems"][::2]] == [
        ["demo_train_000"],
        ["demo_val_000 = demo_train_002"],
    ]
    assert report["splits"]["train"]["num_missing_videos"] == report["splits"]["train"]["num_unreadable_videos"] == 1


def test_long_lists_are_cut_off_on_the_screen_only(tubes_dir, capsys):
    names = [f"walk/missing_{number:02d}" for number in range(30)]

    def add(annotations):
        for name in names:
            for part in ("gttubes", "nframes", "resolution"):
                annotations[part][name] = next(iter(annotations[part].values()))
        annotations["train_videos"][0] += names

    edit_pickle(tubes_dir, add)
    report_file = tubes_dir / "report.json"
    main(["check", "--dataset", "ucf101_24", "--data_dir", str(tubes_dir), "--json", str(report_file)])
    printed = capsys.readouterr().out

    assert "walk/missing_19" in printed
    assert "walk/missing_20" not in printed
    assert "... and 10 more" in printed
    assert json.loads(report_file.read_text())["problems"][0]["details"] == names


def test_wrong_annotations_of_one_split_do_not_hide_the_other(ava_dir):
    path = ava_dir / "annotations" / "ava_train_v2.2.csv"
    path.write_text(path.read_text() + "demo_train_000,0903,0.9,0.1,0.2,0.5,1,0\n")
    (ava_dir / "videos" / "demo_val_000.mp4").unlink()

    problems = problems_of("ava", ava_dir)

    assert list(problems) == ["train: the annotations are wrong", "validation, missing videos: 1"]
    assert "x2 must be larger than x1" in problems["train: the annotations are wrong"][0]


def test_missing_annotations_are_a_problem(tmp_path):
    problems = problems_of("ava", tmp_path)

    assert list(problems) == [f"{split}: annotations or videos are missing" for split in ("train", "validation")]


def test_keyframe_after_the_end_is_a_problem(ava_dir):
    with (ava_dir / "annotations" / "ava_train_v2.2.csv").open("a") as file:
        file.write("demo_train_001,0930,0.1,0.1,0.2,0.5,1,0\n")

    problems = problems_of("ava", ava_dir)

    (detail,) = problems["train, videos that end before their last keyframe: 1"]
    assert detail.startswith("demo_train_001: a keyframe at 30 s, the video has 6.0 s")


def test_frame_counts_and_sizes_are_compared(tubes_dir):
    names = []

    def change(annotations):
        names.extend(annotations["train_videos"][0])
        annotations["nframes"][names[0]] += 3
        annotations["resolution"][names[2]] = (128, 96)
        # Larger, but of the same aspect, as before re-encoding.
        annotations["resolution"][names[3]] = (2 * 96, 2 * 128)

    edit_pickle(tubes_dir, change)
    problems = problems_of("ucf101_24", tubes_dir)

    assert list(problems) == [
        "train, videos with fewer frames than annotated: 1",
        "train, videos of another aspect than annotated: 1",
    ]
    assert problems["train, videos with fewer frames than annotated: 1"][0].startswith(names[0])
    assert problems["train, videos of another aspect than annotated: 1"][0].startswith(names[2])


def test_more_frames_than_annotated_are_a_warning(tubes_dir):
    def cut(annotations):
        name = annotations["train_videos"][0][0]
        annotations["nframes"][name] -= 1
        last = annotations["nframes"][name]
        for arrays in annotations["gttubes"][name].values():
            arrays[:] = [array[array[:, 0] <= last] for array in arrays]

    edit_pickle(tubes_dir, cut)

    assert "train, videos with more frames than annotated: 1" in warnings_of("ucf101_24", tubes_dir)
    assert problems_of("ucf101_24", tubes_dir) == {}


def rename(annotations, videos, old, new):
    for part in ("gttubes", "nframes", "resolution"):
        annotations[part][new] = annotations[part].pop(old)
    for split in ("train_videos", "test_videos"):
        annotations[split] = [[new if name == old else name for name in fold] for fold in annotations[split]]
    (videos / new).parent.mkdir(exist_ok=True)
    (videos / f"{old}.mp4").rename(videos / f"{new}.mp4")


def test_leaks_between_splits_are_found(tubes_dir):
    def leak(annotations):
        train, test = annotations["train_videos"][0], annotations["test_videos"][0]
        rename(annotations, tubes_dir / "videos", train[0], "walk/v_Walk_g05_c01")
        rename(annotations, tubes_dir / "videos", test[0], "walk/v_Walk_g05_c02")
        rename(annotations, tubes_dir / "videos", train[1], "walk/v_Walk_g06_c01")
        rename(annotations, tubes_dir / "videos", test[1], "walk/v_Walk_g07_c01")
        annotations["test_videos"][0].append("walk/v_Walk_g06_c01")

    edit_pickle(tubes_dir, leak)

    assert problems_of("ucf101_24", tubes_dir) == {
        "videos in train and validation: 1": ["walk/v_Walk_g06_c01"],
        "groups of UCF101 (clips of one recording) in train and validation: 1": ["v_Walk_g05"],
    }


def test_damage_in_the_middle_is_found_by_decoding_all(ava_dir):
    path = ava_dir / "videos" / "demo_train_000.mp4"
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    content = bytearray(path.read_bytes())
    position, size = packets[20]
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)

    assert problems_of("ava", ava_dir) == {}
    problems = problems_of("ava", ava_dir, decode_all=True)
    assert "damaged" in problems["train, videos that cannot be read: 1"][0]


def test_folders_of_frames_are_checked(tubes_dir):
    names = []
    edit_pickle(tubes_dir, lambda annotations: names.extend(annotations["train_videos"][0]))
    for name in names[:2]:
        folder = tubes_dir / "rgb-images" / name
        folder.mkdir(parents=True)
        for frame in iterate_frames(tubes_dir / "videos" / f"{name}.mp4"):
            Image.fromarray(frame.image).save(folder / f"{frame.index + 1:05d}.jpg")
        (tubes_dir / "videos" / f"{name}.mp4").unlink()
    (tubes_dir / "rgb-images" / names[1] / "00001.jpg").write_text("no picture")

    report, _ = check_dataset("ucf101_24", tubes_dir)

    assert [problem.summary for problem in report.problems] == ["train, videos that cannot be read: 1"]
    assert "00001.jpg" in report.problems[0].details[0]
    assert report.splits["train"].videos_per_size == {"128x96": 3}


def test_files_without_random_access_are_a_warning(ava_dir):
    path = ava_dir / "videos" / "demo_train_000.mp4"
    with av.open(str(path.with_suffix(".avi")), "w") as output:
        stream = output.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in iterate_frames(path):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        output.mux(stream.encode(None))
    path.unlink()

    (warning,) = (text for text in warnings_of("ava", ava_dir) if "random access" in text)
    assert warning.startswith("train, videos without random access")


@pytest.mark.slow
def test_several_processes_report_the_same(ava_dir):
    (ava_dir / "videos" / "demo_train_001.mp4").write_text("This is not a video.")

    alone, _ = check_dataset("ava", ava_dir)
    together, _ = check_dataset("ava", ava_dir, num_workers=2)

    assert together.to_dict() == alone.to_dict()


def test_contact_sheet_has_the_frames_and_boxes_of_the_data(demo_dir):
    rows = load_action_dataset("ava", demo_dir, "train").filter(lambda row: len(row["tubes"]) == 1).select([0])
    (tube,) = rows[0]["tubes"]

    sheet = np.asarray(draw_contact_sheet(rows, load_action_labels("ava", demo_dir))).astype(int)

    # The one cell: the frame of 128x96 enlarged to its whole size, behind a gap.
    gap = 12
    cell = sheet[gap : gap + CELL_HEIGHT, gap : gap + CELL_WIDTH]
    x_min, y_min, x_max, y_max = (np.array(tube["boxes"][0]) * ([CELL_WIDTH, CELL_HEIGHT] * 2)).round().astype(int)
    blue = [0x56, 0xB4, 0xE9]
    for y, x in (((y_min + y_max) // 2, x_min), ((y_min + y_max) // 2, x_max), (y_max, (x_min + x_max) // 2)):
        assert cell[y, x].tolist() == blue
    seconds = rows[0]["video_seconds"]
    frame = next(iterate_frames(rows[0]["video"], start_seconds=seconds)).image
    enlarged = np.asarray(Image.fromarray(frame).resize((CELL_WIDTH, CELL_HEIGHT), Image.Resampling.NEAREST))
    # Most of the frame has nothing drawn on it.
    assert (cell == enlarged).all(axis=-1).mean() > 0.9


def test_contact_sheet_tells_unknown_from_nothing_and_shows_ignored_regions(tmp_path):
    (row,) = partial_rows(tmp_path)

    sample = _choose_frame(row | {"tubes": [row["tubes"][2], *row["tubes"][:2]]}, {0: "sit", 2: "walk"})

    region = pytest.approx([0.0, 0.5, 0.25, 1.0])
    assert [text for text, _ in sample.actors] == ["(unknown)", "walk", "(ignored region)"]
    assert sample.actors[2][1] == region
    assert _named([], {}) == "(nothing)"


def test_contact_sheet_shows_what_can_be_read(ava_dir, capsys):
    for number in (0, 1):
        (ava_dir / "videos" / f"demo_train_{number:03d}.mp4").unlink()
    output = ava_dir / "sheet.png"

    main(["check", "--dataset", "ava", "--data_dir", str(ava_dir), "--output", str(output)])

    with Image.open(output) as sheet:
        assert sheet.width > 4 * CELL_WIDTH
    assert "not usable: train, missing videos: 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere/sheet.png", "sheet.xyz"])
def test_sheet_that_cannot_be_written_costs_no_verdict(name, demo_dir, tmp_path, capsys):
    assert main(["check", "--dataset", "ava", "--data_dir", str(demo_dir), "--output", str(tmp_path / name)]) == 1
    told, verdict = capsys.readouterr().out.splitlines()[-2:]
    assert told.startswith("not written: ")
    assert verdict == "usable"


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ({"walk": 40, "wlak": 1, "talk": 30}, ["'wlak' (1) and 'walk' (40)"]),
        ({"sit": 9, "Sit": 3, "sits": 2, "sitting": 8}, ["'Sit' (3) and 'sit' (9)", "'sits' (2) and 'sit' (9)"]),
        ({"walk": 40, "talk": 2, "run": 100, "fun": 1}, ["'talk' (2) and 'walk' (40)"]),
        ({"open a door": 50, "close a door": 2, "opendoor": 3}, ["'opendoor' (3) and 'open a door' (50)"]),
        ({"walk": 3, "sit": 0}, []),
    ],
)
def test_classes_that_may_be_one_are_asked_about(counts, pairs):
    assert _near_in_spelling(counts) == pairs


def test_check_asks_about_annotations_that_may_be_misunderstood(tmp_path, two_movies):
    (tmp_path / "videos").symlink_to(two_movies)
    flag = box(0).replace("</box>", '<attribute name="Low Confidence">true</attribute></box>')
    for split in ("train", "validation"):
        (tmp_path / f"{split}.xml").write_text(
            document(track(flag, label="walk"), track(box(1), label="sit", number=1))
        )

    report, _ = check_dataset("custom", tmp_path)

    assert "train: the annotations may not mean what was read" in report.verdict
    assert report.splits["train"].read_as.splitlines()[0].endswith("train.xml: CVAT for video 1.1")
