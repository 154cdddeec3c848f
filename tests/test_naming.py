"""Names of videos: unique in their final form, whatever the videos are called, and found again by the readers."""

import itertools
import os
import unicodedata

import pytest

from classquery.engine.detection.naming import name_videos


def files_of(*sources) -> list[str]:
    return [name.file for name in name_videos(sources)]


def folders_of(*sources) -> list[str]:
    return [name.folder for name in name_videos(sources, reserved=("summary.json", "detections.csv"))]


def test_name_of_the_file_is_enough_where_it_is_unique():
    (name,) = name_videos(["videos/kitchen.2024.mp4"])

    assert (name.file, name.stem, name.folder, name.video_id) == (
        *("kitchen.2024.mp4", "kitchen.2024", "kitchen.2024", "kitchen.2024"),
    )


def test_as_many_folders_as_tell_apart_are_named():
    names = name_videos(["/data/room_a/1.mp4", "/data/room_b/1.mp4", "/data/2.mp4"])

    assert [name.file for name in names] == ["room_a/1.mp4", "room_b/1.mp4", "2.mp4"]
    assert [name.folder for name in names] == ["room_a_1", "room_b_1", "2"]
    assert [name.video_id for name in names] == ["room_a_1", "room_b_1", "2"]


def test_files_of_one_folder_that_differ_little_keep_their_names():
    sources = ["/data/x.mp4", "/data/x .mp4", "/data/x.avi", "/data/X.mp4"]

    assert files_of(*sources) == ["x.mp4", "x .mp4", "x.avi", "X.mp4"]


@pytest.mark.parametrize(
    "sources",
    [
        ["x.mp4", "x .mp4"],
        ["x.mp4", "x.avi"],
        ["A.mp4", "a.mp4"],
        [unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD")],
        ["ﬁlm.mp4", "film.mp4"],
        ["a:b.mp4", "a?b.mp4", "a_b.mp4"],
        ["room_a/1.mp4", "room_b/1.mp4", "room_a_1.mp4"],
        ["x/y/1.mp4", "x_y/1.mp4", "x/y_1.mp4"],
        ["summary.json.mp4", "detections.csv.mp4", "SUMMARY.JSON"],
        [".", "..", "...mp4", ".mp4", " .mp4"],
        [os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"caf\xe8.mp4")],
        ["con.mp4", "con_.mp4", "nul"],
        [f"{'x' * 200}{number}.mp4" for number in range(3)],
        ["http://host/1.mp4?token=a", "http://host/1.mp4?token=b", "rtsp://me:secret@host/1", "0", 1],
    ],
    ids=str,
)
def test_no_two_folders_and_files_are_alike_where_case_and_accents_do_not_count(sources):
    reserved = ("summary.json", "detections.csv")
    for order in itertools.islice(itertools.permutations(sources), 6):
        names = name_videos(order, reserved=reserved)

        folders = [unicodedata.normalize("NFKC", name.folder).casefold() for name in names]
        assert len({*folders, *reserved}) == len(sources) + 2
        assert len({name.file for name in names}) == len({name.video_id for name in names}) == len(sources)
        for folder in folders:
            assert folder == folder.strip(" .") != ""
            assert not set(folder) & set('/\\:*?"<>|')
            folder.encode("utf-8")
        assert "secret" not in str(names)
        assert "token" not in str(names)


def test_names_do_not_depend_on_the_order():
    sources = ["A.mp4", "a.mp4", "b/1.mp4", "c/1.mp4", "b_1.mp4"]

    names = dict(zip(sources, name_videos(sources), strict=True))

    assert list(reversed(name_videos(sources[::-1]))) == list(names.values())


def test_folder_above_the_current_one_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "frames" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "frames" / "inside")

    assert folders_of(".", "..") == ["inside", "frames"]
