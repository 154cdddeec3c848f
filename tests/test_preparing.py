"""Originals become a folder to train on: the right frames at the right times, and no work lost or done twice."""

import json
import shutil
from collections import namedtuple
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from painted_frames import HEIGHT, WIDTH, numbers_on, paint
from PIL import Image

from classquery.data.__main__ import main
from classquery.data.annotations.ava import load_ava
from classquery.data.annotations.registry import load_action_dataset
from classquery.data.clips import KeyframeClips
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.preparation import preparing
from classquery.data.preparation.preparing import Encoding, TimedImage, encode, prepare_videos
from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames


KEYFRAMES = range(902, 906)


def write_movie(path: Path, frames_per_second: Fraction, first_second: float = 0.0) -> None:
    """Write a whole movie that shows a frame every 15 s before minute 15, and all of them from 897 to 908 s."""
    sparse = np.arange(first_second, 896, 15)
    dense = np.arange(897 * frames_per_second, 908 * frames_per_second) / float(frames_per_second)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=frames_per_second, options={"g": "48", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number, seconds in enumerate([*sparse, *dense]):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 90_000), Fraction(1, 90_000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def write_ava(folder: Path, *movies: str) -> Path:
    """Write annotations of some keyframes of movies, which are still to be written."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "videos").mkdir()
    for split in ("train", "val"):
        rows = [f"{movie},{second:04d},0.1,0.1,0.5,0.9,12,0\n" for movie in movies for second in KEYFRAMES]
        (folder / "annotations" / f"ava_{split}_v2.2.csv").write_text("".join(rows))
        (folder / "annotations" / f"ava_{split}_excluded_timestamps_v2.2.csv").touch()
    return folder


@pytest.mark.parametrize("frames_per_second", [Fraction(25), Fraction(30_000, 1001), Fraction(24_000, 1001)])
def test_clips_of_a_cut_movie_are_those_of_the_whole_one(frames_per_second, tmp_path):
    source = write_ava(tmp_path / "source", "movie")
    write_movie(source / "videos" / "movie.mkv", frames_per_second)

    assert prepare_videos("ava", source, tmp_path / "ready", splits=["train"]) == []

    sampling = {"num_labels": 80, "num_frames": 16, "frame_stride": 4}
    whole = KeyframeClips(load_ava(source, "train", movie_start_seconds=0.0), **sampling)
    cut = KeyframeClips(load_ava(tmp_path / "ready", "train"), **sampling)
    for index in range(len(KEYFRAMES)):
        expected, found = (numbers_on(clips[index]["frames"].permute(0, 2, 3, 1).numpy()) for clips in (whole, cut))
        assert found == expected
    info = ClipReader().info(tmp_path / "ready" / "videos" / "movie.mp4")
    assert info.random_access
    # From 900 s on, with the frame on screen then, to the end of the movie at 908 s.
    assert info.num_frames == pytest.approx(float(8 * frames_per_second), abs=2)


def test_keyframe_of_a_cut_movie_of_25_frames_per_second_is_the_25th_of_its_second(tmp_path):
    source = write_ava(tmp_path / "source", "movie")
    write_movie(source / "videos" / "movie.mkv", Fraction(25))
    prepare_videos("ava", source, tmp_path / "ready", splits=["train"])
    path = tmp_path / "ready" / "videos" / "movie.mp4"
    first_dense = len(np.arange(0, 896, 15))

    numbers = numbers_on(ClipReader().read(path, [0, 25, 2 * 25, 5 * 25]))

    assert numbers == [first_dense + 25 * second for second in (3, 4, 5, 8)]


def test_cut_ends_where_no_clip_reaches(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "AVA_SECONDS", (900.0, 904.0))
    source = write_ava(tmp_path / "source", "movie")
    write_movie(source / "videos" / "movie.mkv", Fraction(25))

    prepare_videos("ava", source, tmp_path / "ready", splits=["train"])

    assert ClipReader().info(tmp_path / "ready" / "videos" / "movie.mp4").num_frames == 4 * 25


def test_movie_that_ends_before_the_annotated_part_is_reported(tmp_path):
    source = write_ava(tmp_path / "source", "short", "movie")
    write_movie(source / "videos" / "movie.mkv", Fraction(25))
    encode(source / "videos" / "short.mp4", [TimedImage(0.0, paint(1)), TimedImage(0.04, paint(2))], 25, Encoding())

    (error,) = prepare_videos("ava", source, tmp_path / "ready", splits=["train"])

    assert error.startswith("short: ")
    assert "has no frames from 900 to 1801 s" in error
    assert [path.name for path in (tmp_path / "ready" / "videos").iterdir()] == ["movie.mp4"]


@pytest.fixture(scope="module")
def tubes_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("originals") / "ucf"
    write_demo_tubes(path, "ucf101_24", num_train_videos=3, num_validation_videos=1)
    return path


def test_videos_keep_their_frames(tubes_dir, tmp_path):
    assert prepare_videos("ucf101_24", tubes_dir, tmp_path / "ready") == []

    before, after = (load_action_dataset("ucf101_24", folder, "train") for folder in (tubes_dir, tmp_path / "ready"))
    assert before["tubes"][:] == after["tubes"][:]
    for old, new in zip(before["video"], after["video"], strict=True):
        old_frames, new_frames = list(iterate_frames(old)), list(iterate_frames(new))
        assert [frame.seconds for frame in new_frames] == pytest.approx([frame.seconds for frame in old_frames])
        difference = np.stack([frame.image for frame in old_frames]).astype(int)
        difference -= np.stack([frame.image for frame in new_frames])
        # One generation of encoding at crf 18; neighbouring frames of the demo differ by three levels and more.
        assert np.abs(difference).mean() < 2


def test_prepared_files_have_near_key_frames_and_frames_that_may_be_passed_over(tubes_dir, tmp_path):
    prepare_videos("ucf101_24", tubes_dir, tmp_path, encoding=Encoding(gop=12), splits=["validation"])

    (path,) = (tmp_path / "videos").glob("*/*.mp4")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        # Of a NAL unit's first byte, two bits say whether others refer to it.
        is_referred_to = [bytes(packet)[4] & 0x60 != 0 for packet in packets]
    key_frames = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert np.diff(key_frames).max() == 12
    assert sum(is_referred_to) < 0.4 * len(packets)
    assert ClipReader().info(path).random_access


@pytest.mark.parametrize(
    ("short_side", "size", "written"),
    [
        (0, (340, 256), (340, 256)),
        (0, (341, 255), (340, 256)),
        (128, (340, 256), (170, 128)),
        (512, (64, 64), (64, 64)),
    ],
)
def test_size_is_even_and_never_enlarged(short_side, size, written):
    width, height = Encoding(short_side=short_side).size_of(*size)

    assert width % 2 == height % 2 == 0
    assert np.abs(np.subtract((width, height), written)).max() <= 1


def test_folders_of_frames_become_videos(tubes_dir, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tubes_dir, source)
    (video,) = load_action_dataset("ucf101_24", source, "validation")["video"]
    name = Path(video).relative_to(source / "videos").with_suffix("")
    folder = source / "rgb-images" / name
    folder.mkdir(parents=True)
    for frame in iterate_frames(video):
        Image.fromarray(frame.image).save(folder / f"{frame.index + 1:05d}.png")
    Path(video).unlink()

    assert prepare_videos("ucf101_24", source, tmp_path / "ready", splits=["validation"]) == []

    assert ClipReader().info(tmp_path / "ready" / "videos" / f"{name}.mp4").num_frames == len(list(folder.iterdir()))


def test_files_are_copied_without_gop(tubes_dir, tmp_path):
    prepare_videos("ucf101_24", tubes_dir, tmp_path, encoding=Encoding(gop=0))

    for path in (tubes_dir / "videos").glob("*/*"):
        assert (tmp_path / path.relative_to(tubes_dir)).read_bytes() == path.read_bytes()


# Interrupted runs


def modified_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("videos/*/*")}


def test_run_that_was_stopped_goes_on_where_it_was(tubes_dir, tmp_path, monkeypatch):
    calls = []

    def stop_at_third(path, *arguments):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        return encode(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "encode", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            prepare_videos("ucf101_24", tubes_dir, tmp_path)
    finished = modified_times(tmp_path)

    prepare_videos("ucf101_24", tubes_dir, tmp_path)

    assert len(finished) == 2
    assert finished.items() <= modified_times(tmp_path).items()
    assert len(modified_times(tmp_path)) == 4


def test_what_a_killed_run_left_behind_is_removed_and_made_again(tubes_dir, tmp_path):
    prepare_videos("ucf101_24", tubes_dir, tmp_path)
    before = modified_times(tmp_path)
    first, second, third, fourth = sorted((tmp_path / "videos").glob("*/*"))
    # Killed while the first file was written, and before the second one was recorded whole.
    first.rename(first.with_name(f".{first.stem}-0123abcd.mp4"))
    lines = (tmp_path / "prepared.jsonl").read_text().splitlines(keepends=True)
    name = str(second.relative_to(tmp_path / "videos"))
    lines.sort(key=lambda line: json.loads(line)["name"] == name)
    (tmp_path / "prepared.jsonl").write_text("".join([*lines[:-1], lines[-1][:30]]))
    # A disk may lose the end of a file.
    third.write_bytes(third.read_bytes()[:-10])

    prepare_videos("ucf101_24", tubes_dir, tmp_path)

    after = modified_times(tmp_path)
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] == before[path]] == [fourth.name]
    assert modified_times(tmp_path) == after
    prepare_videos("ucf101_24", tubes_dir, tmp_path)
    assert modified_times(tmp_path) == after


def test_other_settings_make_the_files_again(tubes_dir, tmp_path):
    prepare_videos("ucf101_24", tubes_dir, tmp_path)
    before = modified_times(tmp_path)

    prepare_videos("ucf101_24", tubes_dir, tmp_path, encoding=Encoding(short_side=64))

    assert not before.items() & modified_times(tmp_path).items()
    assert ClipReader().info(next((tmp_path / "videos").glob("*/*"))).height == 64


@pytest.mark.slow
def test_several_processes_write_the_same_files(tubes_dir, tmp_path):
    prepare_videos("ucf101_24", tubes_dir, tmp_path / "alone")
    prepare_videos("ucf101_24", tubes_dir, tmp_path / "together", num_workers=2)

    for path in (tmp_path / "alone" / "videos").glob("*/*"):
        assert (tmp_path / "together" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()


# Problems


def test_disk_without_room_is_refused_before_any_work(tubes_dir, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(OSError, match="has 0.0 GB of room"):
        prepare_videos("ucf101_24", tubes_dir, tmp_path / "ready")
    assert not (tmp_path / "ready" / "videos").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ava", "encoding": Encoding(gop=0)}, "gop must be positive"),
        ({"name": "ava", "movie_start_seconds": 1000.0}, "at most 900"),
        ({"name": "ava", "same": True}, "another folder"),
    ],
)
def test_contradictions_are_refused(arguments, message, tmp_path):
    data_dir = tmp_path / ("source" if arguments.pop("same", False) else "ready")

    with pytest.raises(ValueError, match=message):
        prepare_videos(source_dir=tmp_path / "source", data_dir=data_dir, **arguments)


@pytest.mark.parametrize("arguments", [{"gop": -1}, {"short_side": -1}, {"crf": 52}])
def test_encoding_refuses_impossible_values(arguments):
    with pytest.raises(ValueError, match="gop and short_side must be 0 or more"):
        Encoding(**arguments)


def test_file_that_is_not_as_written_is_no_result(tubes_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "encode", lambda *arguments: encode(*arguments) + 1)

    errors = prepare_videos("ucf101_24", tubes_dir, tmp_path, splits=["validation"])

    assert "frames of" in errors[0]
    assert list((tmp_path / "videos").glob("*/*")) == []


# Nothing but its own files


def write_custom(source: Path, **videos: str) -> Path:
    """Write one video for each split in some container, and a csv that names them as it is told."""
    (source / "videos").mkdir(parents=True)
    (source / "classes.txt").write_text("wave\n")
    for number, (split, name) in enumerate(videos.items()):
        path = source / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as output:
            stream = output.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in range(8):
                image = paint(10 * number + frame)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode(None))
        row = f"{name},0.16,0.1,0.1,0.5,0.9,wave\n"
        (source / f"{split}.csv").write_text("video,timestamp,x1,y1,x2,y2,label\n" + row)
    return source


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepare_custom(source: Path, ready: Path) -> int:
    return main(["prepare", "--dataset", "custom", "--source_dir", str(source), "--data_dir", str(ready)])


def test_custom_videos_of_any_container_keep_their_annotations(tmp_path, capsys):
    source = write_custom(tmp_path / "source", train="a.avi", validation="room/b.mkv")
    before = contents(source)

    assert prepare_custom(source, tmp_path / "ready") == 0

    assert capsys.readouterr().out.splitlines()[-1] == "usable"
    assert contents(source) == before
    for split, name in (("train", "a.mp4"), ("validation", "room/b.mp4")):
        old, new = (load_action_dataset("custom", folder, split)[0] for folder in (source, tmp_path / "ready"))
        assert new.pop("video") == str(tmp_path / "ready" / "videos" / name)
        assert old.pop("video").startswith(str(source))
        assert new == old


def test_tables_name_the_videos_that_were_written(tmp_path, capsys):
    source = write_custom(tmp_path / "source", train="a.avi", validation="b.avi")
    assert prepare_custom(source, tmp_path / "first") == 0
    folders = ["--source_dir", str(tmp_path / "first"), "--data_dir", str(tmp_path / "second")]

    assert main(["prepare", "--dataset", "parquet", *folders]) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "usable"
    (row,) = load_action_dataset("parquet", tmp_path / "second", "train")
    assert row["video"] == str(tmp_path / "second" / "videos" / "a.mp4")


@pytest.mark.parametrize("name", ["{outside}/a.mp4", "../../outside/a.mp4", "{source}/videos/a.mp4"])
def test_videos_named_by_paths_elsewhere_are_refused_before_any_work(tmp_path, capsys, name):
    source = write_custom(tmp_path / "source", train="a.mp4", validation="b.mp4")
    shutil.copytree(source / "videos", tmp_path / "outside")
    name = name.format(outside=tmp_path / "outside", source=source)
    (source / "train.csv").write_text((source / "train.csv").read_text().replace("a.mp4", name))
    before = contents(tmp_path)

    assert prepare_custom(source, tmp_path / "ready") == 1

    assert "nothing was written to" in capsys.readouterr().out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["videos", "videos/a.mp4", "train.csv", "parquet"])
def test_places_behind_links_are_refused_before_any_work(tmp_path, capsys, place):
    source = write_custom(tmp_path / "source", train="a.mp4", validation="b.mp4")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept.csv").write_text("kept")
    target = {"videos": source / "videos", "videos/a.mp4": source / "videos" / "a.mp4"}.get(place)
    link = tmp_path / "ready" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(target or tmp_path / "outside" / ("kept.csv" if place == "train.csv" else ""))
    before = contents(tmp_path)

    assert prepare_custom(source, tmp_path / "ready") == 1

    assert "behind links that lead out of it" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_folders_of_originals_may_be_links(tmp_path):
    source = write_custom(tmp_path / "source", train="a.mp4", validation="b.mp4")
    (source / "videos").rename(tmp_path / "originals")
    (source / "videos").symlink_to(tmp_path / "originals")
    before = contents(tmp_path / "originals")

    assert prepare_custom(source, tmp_path / "ready") == 0

    assert contents(tmp_path / "originals") == before


@pytest.mark.parametrize("place", ["videos/a.mp4", "train.csv"])
def test_files_of_others_are_not_replaced(tmp_path, capsys, place):
    source = write_custom(tmp_path / "source", train="a.avi", validation="b.avi")
    (tmp_path / "ready" / "videos").mkdir(parents=True)
    (tmp_path / "ready" / place).write_text("somebody's work")
    before = contents(tmp_path)

    assert prepare_custom(source, tmp_path / "ready") == 1

    assert f"were changed since: move them, or choose another folder (1: {place})" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_annotations_corrected_in_the_prepared_folder_are_not_replaced(tmp_path, capsys):
    source = write_custom(tmp_path / "source", train="a.avi", validation="b.avi")
    assert prepare_custom(source, tmp_path / "ready") == 0
    assert prepare_custom(source, tmp_path / "ready") == 0
    with (tmp_path / "ready" / "train.csv").open("a") as file:
        file.write("a.avi,0.2,0.1,0.1,0.5,0.9,wave\n")
    before = contents(tmp_path)

    assert prepare_custom(source, tmp_path / "ready") == 1

    assert "move them, or choose another folder (1: train.csv)" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_two_videos_of_one_name_are_refused(tmp_path, capsys):
    source = write_custom(tmp_path / "source", train="a.avi", validation="a.mkv")

    assert prepare_custom(source, tmp_path / "ready") == 1

    assert "two videos would have one name, a: " in capsys.readouterr().out
    assert not (tmp_path / "ready").exists()


def test_frames_do_not_shrink_under_boxes_in_pixels(tmp_path):
    with pytest.raises(ValueError, match="short_side must be 0 where boxes are in pixels"):
        prepare_videos("custom", tmp_path, tmp_path / "x", encoding=Encoding(short_side=64), box_format="pixel")


# The command


def test_command_prepares_and_checks(demo_dir, tmp_path, capsys):
    folders = ["--source_dir", str(demo_dir), "--data_dir", str(tmp_path)]
    command = ["prepare", "--dataset", "demo", *folders, "--movie_start_seconds", "900"]

    assert main(command) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "usable"
    for split in ("train", "validation"):
        rows = load_action_dataset("parquet", tmp_path, split)
        assert rows[:] == load_action_dataset("demo", tmp_path, split)[:]


def test_command_says_why_it_cannot_begin(demo_dir, capsys):
    command = ["prepare", "--dataset", "demo", "--source_dir", str(demo_dir), "--data_dir", str(demo_dir)]

    assert main(command) == 1
    assert capsys.readouterr().out.startswith("not usable: data_dir must be another folder than source_dir")


def test_command_says_what_could_not_be_prepared(demo_dir, tmp_path, capsys):
    source = shutil.copytree(demo_dir, tmp_path / "source")
    (source / "videos" / "demo_train_000.mp4").write_text("This is not a video.")
    (source / "videos" / "demo_train_002.mp4").unlink()
    folders = ["--source_dir", str(source), "--data_dir", str(tmp_path / "ready")]

    code = main(["prepare", "--dataset", "demo", *folders, "--movie_start_seconds", "900"])
    printed = capsys.readouterr().out

    assert code == 1
    assert printed.splitlines()[-1] == (
        "not usable: train, missing videos: 2; videos or splits that could not be prepared: 2"
    )
    assert "demo_train_000: cannot read" in printed
    assert f"demo_train_002: no video in {source}" in printed
    assert len(list((tmp_path / "ready" / "videos").iterdir())) == 2
    assert not (tmp_path / "ready" / "parquet").exists()


def test_frames_of_a_variable_rate_keep_their_times(tmp_path):
    seconds = np.cumsum([0.0, *(0.01 + 0.037 * index % 0.17 for index in range(30))])
    frames = [TimedImage(float(time), paint(number)) for number, time in enumerate(seconds)]

    encode(tmp_path / "variable.mp4", frames, 25, Encoding())

    # Times are written in steps of 11 microseconds.
    found = [frame.seconds for frame in iterate_frames(tmp_path / "variable.mp4")]
    assert found == pytest.approx(seconds, abs=6e-6)


def test_video_that_is_damaged_in_the_middle_is_not_half_prepared(tubes_dir, tmp_path):
    source = shutil.copytree(tubes_dir, tmp_path / "source")
    path = next((source / "videos").glob("*/train_0000.mp4"))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    content = bytearray(path.read_bytes())
    content[packets[20][0] : sum(packets[20])] = b"\xff" * packets[20][1]
    path.write_bytes(content)

    errors = prepare_videos("ucf101_24", source, tmp_path / "ready")

    assert len(errors) == 1
    assert "damaged" in errors[0]
    assert len(list((tmp_path / "ready" / "videos").glob("*/*"))) == 3
    with pytest.raises(VideoReadError):
        list(iterate_frames(path))
