"""The core of detection: which clips are cut out of the frames, and what both ways in make of them."""

import functools
import math
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from painted_frames import HEIGHT, WIDTH, number_on, paint
from test_clip_reader import (
    NUM_FRAMES,
    RECIPE_OF,
    TICKS_PER_FRAME,
    VARIABLE_TIMES,
    copy_bytes,
    copy_video,
    write_audio,
)
from test_clip_reader import write_video as write_painted
from test_detection import CONSTANT_RATE, NAMES, VARIABLE_RATE, make_model, write_video
from utils import tiny_config

from classquery import (
    ClassQueryForVideoActionDetection,
    ClassQueryVideoProcessor,
    VideoActionDetectionPipeline,
    detect,
)
from classquery import frames_classquery as frames_module
from classquery.data.clips import tile_starts
from classquery.data.video.reader import Frame
from classquery.detection_classquery import ClipDetector, ClipPlan, Sampling, assemble_clips, tiles
from classquery.frames_classquery import DecodableFrames, MissingFrames


pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = {"threshold": 0.0, "actor_threshold": 0.0}


# Clips


def stream(num_frames: int, missing: Sequence[int] = (), seconds: Callable = lambda index: index / 8) -> Iterator:
    for index in range(num_frames):
        if index not in missing:
            yield Frame(index, seconds(index), functools.partial(np.array, [index]))


def clips_every(step: int) -> ClipPlan:
    """Clips of 5 frames with stride 4 around every so many-th frame."""
    return ClipPlan(lambda number: (step * number + 4 * np.arange(-2, 3)) / 8, False, 2, range(2, 3), 8 / step)


def numbers(clips) -> list[list[int]]:
    return [clip.frames.flatten().tolist() for clip in clips]


def keyframes(clips) -> list[int]:
    return [frame_index for clip in clips for _, frame_index, _ in clip.reported]


def largest_number_of_frames_alive(frames: Iterator, plan: ClipPlan) -> int:
    alive, counts = set(), []

    def prepare(image: np.ndarray) -> torch.Tensor:
        frame = torch.from_numpy(image)
        alive.add(id(frame))
        weakref.finalize(frame, alive.remove, id(frame))
        counts.append(len(alive))
        return frame

    for _ in assemble_clips(frames, plan, prepare):
        pass
    return max(counts)


def test_number_of_frames_in_memory_does_not_grow_with_the_video():
    of_long, of_short = (largest_number_of_frames_alive(stream(length), clips_every(6)) for length in (2000, 100))

    assert of_long == of_short <= 17


def test_clips_overlap_and_repeat_the_first_and_the_last_frame():
    clips = assemble_clips(stream(20), clips_every(6), torch.from_numpy)

    assert numbers(clips) == [[0, 0, 0, 4, 8], [0, 2, 6, 10, 14], [4, 8, 12, 16, 19], [10, 14, 18, 19, 19]]


@pytest.mark.parametrize(
    ("missing", "expected"), [([10], [4, 8, 12, 16, 20]), ([8], [4, 7, 12, 16, 20]), ([8, 12], [4, 7, 11, 16, 20])]
)
def test_frame_that_the_decoder_skips_is_replaced_by_the_nearest(missing, expected):
    clips = assemble_clips(stream(30, missing), clips_every(12), torch.from_numpy)

    assert numbers(clips)[1] == expected


def test_frame_next_to_many_missing_ones_is_reported_once():
    clips = assemble_clips(stream(60, missing=range(10, 20)), clips_every(6), torch.from_numpy)

    assert keyframes(clips) == [0, 6, 9, 20, 24, 30, 36, 42, 48, 54]


def test_gap_of_a_month_gives_two_clips_and_not_one_per_second():
    month = 30 * 86400
    opened = []

    def positions(number: int) -> np.ndarray:
        opened.append(number)
        return number + np.arange(-2, 3) / 2

    plan = ClipPlan(positions, by_index=False, anchor=2, reported=range(2, 3), per_second=1.0)
    frames = stream(40, seconds=lambda index: index / 8 + (month if index >= 20 else 0))

    clips = list(assemble_clips(frames, plan, torch.from_numpy))

    # Pictures 20 to 39 are from second 2.5 of the month on.
    assert keyframes(clips) == [0, 8, 16, 19, 20, 24, 32]
    assert numbers(clips)[-2:] == [[20, 20, 24, 28, 32], [24, 28, 32, 36, 39]]
    assert len(set(opened)) < 20


def test_pictures_that_start_late_are_sought_from_their_start():
    frames = stream(40, seconds=lambda index: index / 8 + 2.5)

    clips = list(assemble_clips(frames, Sampling().plan(tiny_config(frame_stride=15), None), torch.from_numpy))

    # The frames nearest to seconds 2, 3, ..., 7, of which the last comes at 7.375 s.
    assert keyframes(clips) == [0, 4, 12, 20, 28, 36]
    assert numbers(clips)[1] == [0, 0, 4, 8]


def test_every_so_many_frames_count_from_the_first_one():
    video = SimpleNamespace(frames_per_second=8.0, start_seconds=2.3)
    frames = stream(40, seconds=lambda index: index / 8 + video.start_seconds)

    clips = assemble_clips(frames, Sampling(keyframe_stride=7).plan(tiny_config(), video), torch.from_numpy)

    assert keyframes(clips) == [0, 7, 14, 21, 28, 35]


@pytest.mark.parametrize("num_frames", [1, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("is_length_known", [True, False])
def test_models_of_all_frames_see_every_frame_once(num_frames, is_length_known):
    plan = tiles(tiny_config(output_frames="all", frame_stride=1), num_frames if is_length_known else None)

    clips = list(assemble_clips(stream(num_frames), plan, torch.from_numpy))

    assert keyframes(clips) == list(range(num_frames))
    assert [len(clip.frames) for clip in clips] == [4] * math.ceil(num_frames / 4)
    if is_length_known:
        expected = [np.arange(start, start + 4).clip(0, num_frames - 1) for start in tile_starts(num_frames, 4)]
        assert numbers(clips) == [frames.tolist() for frames in expected]


def test_frames_of_overlapping_clips_count_where_they_are_nearest_to_the_middle():
    plan = tiles(tiny_config(output_frames="all", frame_stride=1), 8, clip_stride=2)

    clips = list(assemble_clips(stream(8), plan, torch.from_numpy))

    assert numbers(clips) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    places = [[(index, frame_index) for index, frame_index, _ in clip.reported] for clip in clips]
    assert places == [[(0, 0), (1, 1), (2, 2), (3, 3)], [(2, 4), (3, 5)], [(2, 6), (3, 7)]]


def test_models_of_all_frames_can_report_fewer():
    plan = tiles(tiny_config(output_frames="all", frame_stride=1), 20, seconds_between=1.0)

    clips = list(assemble_clips(stream(20), plan, torch.from_numpy))

    assert keyframes(clips) == [0, 8, 16]
    assert len(clips) == 3


def test_missing_frames_are_noted_and_told_about(caplog):
    def broken() -> Iterator:
        yield from stream(20, missing=[3, 4, 5, 10])
        raise KeyError("damage")

    frames = DecodableFrames(broken(), "x.mp4", 24, KeyError)

    assert [frame.index for frame in frames] == [index for index in range(20) if index not in (3, 4, 5, 10)]
    expected = [(2 / 8, 6 / 8, 3), (9 / 8, 11 / 8, 1), (19 / 8, None, 4)]
    assert frames.missing == [MissingFrames(*span) for span in expected]
    assert "x.mp4: nothing is detected from 0.2 s to 0.8 s, 1.1 s to 1.4 s, 2.4 s on: 'damage'" in caplog.text


# Both ways in


@pytest.fixture(params=["detect", "pipeline", "pipeline from the Hub"])
def run(request, monkeypatch) -> Callable[..., list[tuple]]:
    """Detect, and return number, seconds, label, score, actor's score and box of each action."""
    if request.param == "pipeline from the Hub":
        # There is no clip reader.
        monkeypatch.setattr(frames_module, "_HAS_READER", False)

    def run_detect(video, model, processor, **options) -> list[tuple]:
        return [
            (frame.frame_index, frame.seconds, label, score, actor.actor_score, *actor.box)
            for frame in detect(video, model, processor, **options)
            for actor in frame.actors
            for label, score in actor.actions
        ]

    def run_pipeline(video, model, processor, **options) -> list[tuple]:
        found = VideoActionDetectionPipeline(model, video_processor=processor)(video, **options)
        keys = ("frame", "time", "label", "score", "actor_score")
        return [(*(one[key] for key in keys), *one["box"].values()) for one in found]

    return run_detect if request.param == "detect" else run_pipeline


@pytest.fixture(scope="module")
def model() -> ClassQueryForVideoActionDetection:
    return make_model()


@pytest.fixture(scope="module")
def processor() -> ClassQueryVideoProcessor:
    return ClassQueryVideoProcessor(size={"shortest_edge": 32})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "constant.mp4", CONSTANT_RATE)


def frames_of(found: list[tuple]) -> dict[int, float]:
    """Number and seconds of the frames with detections."""
    return {row[0]: row[1] for row in found}


def test_all_ways_give_the_same_detections(run, model, processor, path):
    options = EVERYTHING | {"keyframes_per_second": 3, "batch_size": 3}

    found = run(path, model, processor, **options)

    expected = [
        (frame.frame_index, frame.seconds, label, score, actor.actor_score, *actor.box)
        for frame in detect(path, model, processor, **options)
        for actor in frame.actors
        for label, score in actor.actions
    ]
    assert len(expected) == 8 * 3 * 5  # Keyframes, candidates, classes.
    assert sorted(found) == sorted(expected)


def test_models_of_all_frames_detect_in_each_once(run, processor, path):
    model = make_model(output_frames="all", frame_stride=1)

    found = run(path, model, processor, top_k=1, batch_size=2, **EVERYTHING)

    assert [row[0] for row in found] == [index for index in range(50) for _ in range(3)]


def test_keyframes_of_a_variable_rate_are_the_frames_nearest_to_regular_times(run, model, processor, tmp_path):
    path = write_video(tmp_path / "variable.mp4", VARIABLE_RATE, size=(75, 49))

    found = run(path, model, processor, keyframes_per_second=2, **EVERYTHING)

    wanted = np.arange(0, VARIABLE_RATE[-1] + 1e-6, 0.5)
    nearest = [int(np.abs(VARIABLE_RATE - seconds).argmin()) for seconds in wanted]
    assert list(frames_of(found)) == nearest
    assert list(frames_of(found).values()) == pytest.approx(VARIABLE_RATE[nearest], abs=1e-3)


def trimmed(folder: Path) -> str:
    """Packets of frames before number 17 that an edit list hides."""

    def shift(packet: av.Packet) -> av.Packet:
        packet.pts, packet.dts = packet.pts - 17 * TICKS_PER_FRAME, packet.dts - 17 * TICKS_PER_FRAME
        return packet

    whole = write_painted(RECIPE_OF["h264_b_frames.mp4"], folder)
    return copy_video(whole, folder / "trimmed.mp4", shift, avoid_negative_ts="disabled")


def rotated(folder: Path) -> str:
    def turn_clockwise(data: bytes) -> bytes:
        start = data.index(b"tkhd") + 40
        matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
        return data[:start] + matrix + data[start + 36 :]

    return copy_bytes(write_painted(RECIPE_OF["h264_b_frames.mp4"], folder), folder / "rotated.mp4", turn_clockwise)


def late(folder: Path) -> str:
    """Pictures that start two seconds after the sound."""
    sound, whole = write_audio(folder / "audio.mp4"), write_painted(RECIPE_OF["h264.mkv"], folder)
    path = str(folder / "late.mkv")
    with av.open(sound) as audio, av.open(whole) as video, av.open(path, "w") as output:
        streams = {source: output.add_stream_from_template(source.streams[0]) for source in (audio, video)}
        for source, stream in streams.items():
            for packet in source.demux():
                if packet.size:
                    shift = 0 if source is audio else round(2 / packet.time_base)
                    packet.pts, packet.stream = packet.pts + shift, stream
                    packet.dts = None if packet.dts is None else packet.dts + shift
                    output.mux(packet)
    return path


EVEN_TIMES = np.arange(NUM_FRAMES) / 25
EXACT = {
    "variable rate": ("h264_variable_rate.mp4", range(NUM_FRAMES), VARIABLE_TIMES / 1000),
    "edit list": (trimmed, range(17, NUM_FRAMES), EVEN_TIMES[: NUM_FRAMES - 17]),
    "MPEG-TS": ("h264.ts", range(NUM_FRAMES), EVEN_TIMES),
    "avi of B-frames": ("mpeg4_b_frames.avi", range(NUM_FRAMES), EVEN_TIMES),
    "rotation": (rotated, range(NUM_FRAMES), EVEN_TIMES),
    "pictures behind sound": (late, range(NUM_FRAMES), EVEN_TIMES + 2),
}


@pytest.mark.parametrize("kind", EXACT)
def test_every_frame_is_the_one_of_its_number_and_time(kind, run, processor, tmp_path, monkeypatch):
    made, shown, seconds = EXACT[kind]
    path = write_painted(RECIPE_OF[made], tmp_path) if isinstance(made, str) else made(tmp_path)
    seen, resize = [], ClipDetector.resize

    def note(detector: ClipDetector, image: np.ndarray) -> torch.Tensor:
        seen.append(number_on(np.ascontiguousarray(np.rot90(image, image.shape[0] > image.shape[1]))))
        return resize(detector, image)

    monkeypatch.setattr(ClipDetector, "resize", note)

    found = run(path, make_model(output_frames="all", frame_stride=1), processor, top_k=1, **EVERYTHING)

    assert seen == list(shown)
    assert list(frames_of(found)) == list(range(len(shown)))
    assert list(frames_of(found).values()) == pytest.approx(seconds, abs=1e-3)
    assert max(row[7] for row in found) <= (HEIGHT if kind == "rotation" else WIDTH)


def test_saved_thresholds_count_until_others_are_given(run, model, path):
    processor = ClassQueryVideoProcessor(
        size={"shortest_edge": 32}, score_threshold=0.9, class_thresholds={"sit": 0.05}, actor_threshold=0.0
    )
    everything = run(path, model, processor, threshold=0.0)
    labels = {row[2] for row in everything}

    assert labels == set(NAMES)
    saved, given = run(path, model, processor), run(path, model, processor, threshold=0.4)
    assert saved == [row for row in everything if row[3] >= (0.05 if row[2] == "sit" else 0.9)]
    assert given == [row for row in everything if row[3] >= 0.4]
    assert 0 < len(saved) < len(everything) > len(given) > 0


def test_model_with_other_names_or_fewer_classes_is_run(run, path, tmp_path, caplog):
    make_model().save_pretrained(tmp_path)
    renamed = ClassQueryForVideoActionDetection.from_pretrained(tmp_path, id2label=dict(enumerate("abcde")))
    processor = ClassQueryVideoProcessor(
        size={"shortest_edge": 32}, score_threshold=0.0, class_thresholds={"sit": 0.9}, actor_threshold=0.0
    )

    found = run(path, renamed.eval(), processor)

    assert {row[2] for row in found} == set("abcde")


@pytest.mark.parametrize("spoil", ["weights", "normalisation"])
def test_scores_that_are_not_finite_are_an_error(spoil, run, path):
    model, processor = make_model(), ClassQueryVideoProcessor(size={"shortest_edge": 32})
    if spoil == "weights":
        next(model.parameters()).data.fill_(math.nan)
    else:
        processor.image_std = [0.0, 0.0, 0.0]

    with pytest.raises(ValueError, match="not finite"):
        run(path, model, processor)


def test_damage_in_the_middle_does_not_end_the_results(run, model, processor, tmp_path, caplog):
    path = Path(write_video(tmp_path / "video.mp4", np.arange(100) / 20))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[30:50]:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)

    found = run(path, model, processor, keyframes_per_second=4, **EVERYTHING)

    numbers = list(frames_of(found))
    # Second 1.5 to 2.5 is lost: the frames beside it stand for the keyframes in it.
    assert numbers == [*range(0, 30, 5), 29, *range(50, 100, 5)]
    assert "nothing is detected from 1.4 s to 2.5 s" in caplog.text or "1.5 s to 2.5 s" in caplog.text


def test_damaged_end_is_told_about(run, model, processor, tmp_path, caplog):
    path = Path(write_video(tmp_path / "video.mp4", np.arange(100) / 20))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    found = run(path, model, processor, **EVERYTHING)

    assert list(frames_of(found)) == [20 * second for second in range(len(frames_of(found)))]
    assert 2 <= len(frames_of(found)) < 5


def test_images_have_their_number_and_time(run, model, processor):
    images = np.stack([np.ascontiguousarray(paint(number)) for number in range(20)])

    found = run(images, model, processor, frames_per_second=10, **EVERYTHING)

    assert frames_of(found) == {0: 0.0, 10: 1.0}
