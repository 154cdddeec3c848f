"""Every frame of the videos made here shows its own number, so that a wrong frame is noticed."""

import importlib.util
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from mutations import try_mutations
from painted_frames import HEIGHT, WIDTH, number_on, numbers_on, paint, resize
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from classquery.data.video import index as video_index
from classquery.data.video import opening, pyav_file
from classquery.data.video import reader as clip_reader
from classquery.data.video.frame_folder import read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames


NUM_FRAMES = 60
FRAMES_PER_SECOND = 25
# Of the time base that FFmpeg gives an mp4 with 25 frames per second.
TICKS_PER_FRAME = 512
GROUP_SIZE = 12
# Milliseconds: intervals from 10 to 170, no two neighbours alike.
# Not coded, at any time: "01" P-VOP, "0" no whole second, "1", five bits of time, "1", "0" not coded, stuffing.
EMPTY_XVID_FRAME = b"\x00\x00\x01\xb6" + bytes([0b01010000, 0b01001111])
VARIABLE_TIMES = np.cumsum([0, *(10 + 37 * i % 170 for i in range(NUM_FRAMES - 1))])


@dataclass(frozen=True)
class Recipe:
    """How to encode a test video, and the way in which it must be read."""

    file_name: str
    encoder: str
    way: str
    """seek: from a key frame; decord: the same, and decord does it, too; start: from the first frame."""
    options: dict[str, str] = field(default_factory=dict)
    max_b_frames: int | None = None
    pixel_format: str = "yuv420p"
    times: np.ndarray | None = None
    group_size: int = GROUP_SIZE
    size: tuple[int, int] = (HEIGHT, WIDTH)


RECIPES = [
    Recipe("h264_b_frames.mp4", "libx264", "decord", {"x264-params": "bframes=3:b-adapt=0"}),
    Recipe("h264_variable_rate.mp4", "libx264", "decord", times=VARIABLE_TIMES),
    Recipe("h264_fragments.mp4", "libx264", "decord", {"movflags": "frag_keyframe+empty_moov"}),
    Recipe("h264.mkv", "libx264", "decord"),
    # As x264 does it by default, but with more of what makes frames refer to each other.
    Recipe("h264_pyramid.mp4", "libx264", "decord", {"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal:ref=5"}),
    # None of the frames between two anchors is referred to.
    Recipe("h264_flat.mp4", "libx264", "decord", {"x264-params": "bframes=3:b-adapt=0:b-pyramid=none"}),
    Recipe("h264_one_group.mp4", "libx264", "decord", group_size=NUM_FRAMES),
    Recipe("h264_ten_bits.mp4", "libx264", "decord", pixel_format="yuv420p10le"),
    Recipe("h264_full_chroma.mkv", "libx264", "decord", pixel_format="yuv444p", size=(HEIGHT + 1, WIDTH - 1)),
    Recipe("h264_full_range.mp4", "libx264", "decord", pixel_format="yuvj420p"),
    Recipe("h264.flv", "libx264", "start"),
    Recipe("h264_open_gop.mp4", "libx264", "start", {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
    Recipe("h264_intra_refresh.mp4", "libx264", "start", {"x264-params": "intra-refresh=1:bframes=0"}),
    Recipe("h264.avi", "libx264", "start"),
    Recipe("h264.ts", "libx264", "start"),
    Recipe("h264_without_times.h264", "libx264", "start"),
    Recipe("hevc_open_gop.mp4", "libx265", "seek", {"x265-params": "open-gop=1:bframes=3:log-level=none"}),
    Recipe("hevc_closed_gop.mp4", "libx265", "seek", {"x265-params": "open-gop=0:bframes=3:log-level=none"}),
    Recipe("hevc_closed_gop.mkv", "libx265", "seek", {"x265-params": "open-gop=0:bframes=3:log-level=none"}),
    Recipe("av1.mp4", "libsvtav1", "seek", {"preset": "12", "crf": "10"}),
    Recipe("vp8.webm", "libvpx", "decord", {"deadline": "realtime"}),
    Recipe("vp9.webm", "libvpx-vp9", "decord", {"deadline": "realtime", "cpu-used": "8"}),
    Recipe("vp9_odd_size.webm", "libvpx-vp9", "decord", {"deadline": "realtime"}, size=(HEIGHT - 1, WIDTH + 1)),
    Recipe("mjpeg.avi", "mjpeg", "start", pixel_format="yuvj420p"),
    Recipe("mjpeg.mov", "mjpeg", "decord", pixel_format="yuvj420p"),
    Recipe("mpeg2.mpg", "mpeg2video", "start", max_b_frames=2),
    Recipe("mpeg2.mkv", "mpeg2video", "seek", max_b_frames=2),
    Recipe("mpeg4.avi", "mpeg4", "start", max_b_frames=0),
    Recipe("mpeg4_b_frames.avi", "mpeg4", "start", max_b_frames=2),
    Recipe("mpeg4_odd_size.avi", "mpeg4", "start", max_b_frames=0, size=(HEIGHT + 1, WIDTH + 1)),
    Recipe("mpeg4.mp4", "mpeg4", "start", max_b_frames=0),
    Recipe("mpeg4_b_frames.mp4", "mpeg4", "start", max_b_frames=2),
    Recipe("wmv2.wmv", "wmv2", "start"),
]
RECIPE_OF = {recipe.file_name: recipe for recipe in RECIPES}


needs_decord = pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="decord is not installed")


def has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


each_recipe = pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            recipe,
            id=recipe.file_name,
            marks=pytest.mark.skipif(
                not has_encoder(recipe.encoder), reason=f"PyAV was built without {recipe.encoder}"
            ),
        )
        for recipe in RECIPES
    ],
)


def write_video(recipe: Recipe, folder: Path, shown_numbers: range | list[int] = range(NUM_FRAMES)) -> str:
    path = str(folder / recipe.file_name)
    with av.open(
        path, "w", options={key: recipe.options[key] for key in recipe.options if key == "movflags"}
    ) as output:
        stream = output.add_stream(recipe.encoder, rate=FRAMES_PER_SECOND, options=recipe.options)
        stream.height, stream.width, stream.pix_fmt = *recipe.size, recipe.pixel_format
        stream.codec_context.gop_size, stream.codec_context.thread_count = recipe.group_size, 1
        if recipe.max_b_frames is not None:
            stream.codec_context.max_b_frames = recipe.max_b_frames
        if recipe.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in shown_numbers:
            frame = av.VideoFrame.from_ndarray(resize(paint(number), recipe.size), format="rgb24")
            first = shown_numbers[0]
            frame.pts = number - first if recipe.times is None else int(recipe.times[number] - recipe.times[first])
            frame.time_base = Fraction(1, FRAMES_PER_SECOND) if recipe.times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def copy_video(source: str, target: Path, change: Callable[[av.Packet], av.Packet], **options: str) -> str:
    """Copy the packets of a video without encoding anew."""
    with av.open(source) as container, av.open(str(target), "w", options=options) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet = change(packet)
                packet.stream = stream
                output.mux(packet)
    return str(target)


def copy_bytes(source: str, target: Path, change: Callable[[bytes], bytes]) -> str:
    target.write_bytes(change(Path(source).read_bytes()))
    return str(target)


def write_audio(path: Path) -> str:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the function that gives the path of a test video, written when first asked for."""
    folder = tmp_path_factory.mktemp("videos")

    def path_of_video(file_name: str) -> str:
        path = folder / file_name
        return str(path) if path.exists() else write_video(RECIPE_OF[file_name], folder)

    return path_of_video


def way_of(path: str) -> str:
    index = video_index.index_video(str(path))
    if index.is_exact_with_decord:
        return "decord"
    return "seek" if index.info.random_access else "start"


# Frames


@each_recipe
def test_read_returns_the_frames_asked_in_random_order(recipe, path_of):
    path = path_of(recipe.file_name)
    random = np.random.default_rng(0)
    reader = ClipReader()

    clips = [random.integers(0, NUM_FRAMES, 5) for _ in range(12)]
    clips += [start + stride * np.arange(5) for start in (0, 13, 22, 30) for stride in (1, 4)]

    assert way_of(path) == recipe.way
    assert [numbers_on(reader.read(path, clip)) for clip in clips] == [clip.tolist() for clip in clips]


@each_recipe
def test_read_returns_every_frame_alone(recipe, path_of):
    path = path_of(recipe.file_name)
    reader = ClipReader()

    assert [number_on(reader.read(path, [i])[0]) for i in range(NUM_FRAMES)] == list(range(NUM_FRAMES))


each_recipe_for_decord = pytest.mark.parametrize(
    "recipe", [recipe for recipe in each_recipe.args[1] if recipe.values[0].way == "decord"]
)


@needs_decord
@each_recipe_for_decord
def test_backends_give_the_same_pixels(recipe, path_of):
    path = path_of(recipe.file_name)
    readers = [ClipReader(backend=backend) for backend in ("decord", "pyav", "auto")]

    for clip in (range(NUM_FRAMES), [59, 3, 3, 20], [11], range(5, 45, 4)):
        frames, *others = (reader.read(path, clip) for reader in readers)
        assert numbers_on(frames) == list(clip)
        for other in others:
            np.testing.assert_array_equal(frames, other)


@needs_decord
@pytest.mark.parametrize("file_name", [recipe.file_name for recipe in RECIPES if recipe.way != "decord"])
def test_decord_refuses_what_it_reads_wrongly(file_name, path_of):
    path = path_of(file_name)

    with pytest.raises(VideoReadError, match=rf'{file_name}: decord .* some files of its kind .*backend="auto"'):
        ClipReader(backend="decord").read(path, [3])


@needs_decord
def test_decord_refuses_a_file_in_which_it_finds_other_frames(path_of, monkeypatch):
    path = path_of("h264.mkv")
    monkeypatch.setattr("decord.VideoReader.__len__", lambda reader: NUM_FRAMES - 1)

    with pytest.raises(VideoReadError, match="decord finds 59 frames where 60 are"):
        ClipReader(backend="decord").read(path, [3])


def test_reader_works_without_decord(path_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)

    assert numbers_on(ClipReader().read(path_of("h264.mkv"), [7, 3])) == [7, 3]
    with pytest.raises(ImportError, match='pip install decord .* or decord2 .*backend="auto" works'):
        ClipReader(backend="decord")


def test_reader_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match=r"one of \('auto', 'pyav', 'decord'\), got 'ffmpeg'"):
        ClipReader(backend="ffmpeg")


@each_recipe
def test_iterate_frames_agrees_with_read(recipe, path_of):
    path = path_of(recipe.file_name)
    reader = ClipReader()

    frames = list(iterate_frames(path))

    assert [frame.index for frame in frames] == list(range(NUM_FRAMES))
    np.testing.assert_array_equal(
        reader.frame_indices_at(path, [frame.seconds for frame in frames]), range(NUM_FRAMES)
    )
    np.testing.assert_array_equal(np.stack([frame.image for frame in frames]), reader.read(path, range(NUM_FRAMES)))


@each_recipe
def test_iterate_frames_starts_at_a_time(recipe, path_of):
    path = path_of(recipe.file_name)
    seconds = [frame.seconds for frame in iterate_frames(path)]

    for start in (1, 11, 12, 35, NUM_FRAMES - 1):
        frames = list(iterate_frames(path, start_seconds=seconds[start]))
        assert [frame.index for frame in frames] == list(range(start, NUM_FRAMES))
        assert numbers_on([frame.image for frame in frames]) == list(range(start, NUM_FRAMES))


@each_recipe
def test_needed_frames_come_as_ever_among_others_that_are_not_decoded(recipe, path_of, monkeypatch):
    path = path_of(recipe.file_name)
    monkeypatch.setattr(clip_reader, "_NUM_FRAMES_AHEAD", 4)
    needed = [2, 3, 9, *range(20, 44, 4), 57]

    frames = list(iterate_frames(path, needed=iter(needed)))

    assert [frame.index for frame in frames] == list(range(NUM_FRAMES))
    assert [number_on(frames[index].image) for index in needed] == needed
    # Nobody said so, but it can be looked at.
    assert number_on(frames[5].image) == 5


def test_needed_frames_of_few_references_take_less_decoding(path_of, monkeypatch):
    path = path_of("h264_flat.mp4")
    decoded = []
    monkeypatch.setattr(pyav_file, "decode", lambda packet: decoded.extend(frames := opening.decode(packet)) or frames)

    list(iterate_frames(path, needed=range(1, NUM_FRAMES, 10)))

    # Those that others refer to, and the few that are asked for.
    assert len(decoded) < 30


def test_iterate_frames_yields_nothing_after_the_end(path_of):
    assert list(iterate_frames(path_of("h264.mkv"), start_seconds=100.0)) == []


@pytest.mark.parametrize("file_name", ["h264_pyramid.mp4", "vp9.webm"])
def test_frames_far_from_each_other_are_sought(file_name, path_of, monkeypatch):
    path = path_of(file_name)
    ClipReader().info(path)
    fed = []
    monkeypatch.setattr(pyav_file, "decode", lambda packet: fed.append(1) or opening.decode(packet))

    for max_packets_passed_over in (0, 100):
        fed.clear()
        monkeypatch.setattr(pyav_file, "_MAX_PACKETS_PASSED_OVER", max_packets_passed_over)
        assert numbers_on(ClipReader().read(path, [0, 37, 59])) == [0, 37, 59]
        assert len(fed) < 30


@pytest.fixture
def seeks(monkeypatch):
    """Return the list to which every seek and every start from the first frame is added."""
    seeks = []
    for name in ("_seek", "_reopen"):
        go = getattr(pyav_file.PyavFile, name)
        monkeypatch.setattr(
            pyav_file.PyavFile, name, lambda file, *arguments, go=go: seeks.append(arguments) or go(file, *arguments)
        )
    return seeks


@pytest.mark.parametrize("file_name", ["h264_one_group.mp4", "h264_pyramid.mp4", "h264_flat.mp4", "av1.mp4"])
@pytest.mark.parametrize("stride", [1, 4])
def test_clip_takes_one_seek_at_most(file_name, stride, path_of, seeks):
    reader = ClipReader()
    for start in np.random.default_rng(0).integers(0, NUM_FRAMES - 7 * stride, 20):
        seeks.clear()
        clip = start + stride * np.arange(8)
        assert numbers_on(reader.read(path_of(file_name), clip)) == clip.tolist()
        assert len(seeks) <= 1


@pytest.mark.parametrize("file_name", [recipe.file_name for recipe in RECIPES if recipe.file_name.startswith("h264")])
def test_clip_that_follows_another_goes_on_where_that_ended(file_name, path_of, seeks):
    reader = ClipReader()
    for start in range(0, NUM_FRAMES, 5):
        assert numbers_on(reader.read(path_of(file_name), range(start, start + 5))) == [*range(start, start + 5)]
    assert len(seeks) == 0


def test_read_repeats_frames_and_accepts_arrays(path_of):
    reader = ClipReader()

    for file_name in ("h264.mkv", "mpeg4.avi"):
        clip = reader.read(Path(path_of(file_name)), np.array([7, 3, 7, 59, 3], np.int32))
        assert numbers_on(clip) == [7, 3, 7, 59, 3]


def test_trimmed_video_starts_at_the_frame_that_its_edit_list_names(path_of, tmp_path):
    for file_name in ("h264_b_frames.mp4", "hevc_open_gop.mp4"):

        def shift(packet: av.Packet) -> av.Packet:
            packet.pts, packet.dts = packet.pts - 17 * TICKS_PER_FRAME, packet.dts - 17 * TICKS_PER_FRAME
            return packet

        path = copy_video(path_of(file_name), tmp_path / file_name, shift, avoid_negative_ts="disabled")
        frame_indices = np.random.default_rng(0).permutation(NUM_FRAMES - 17)

        assert ClipReader().info(path).num_frames == NUM_FRAMES - 17
        assert numbers_on(ClipReader().read(path, frame_indices)) == (frame_indices + 17).tolist()


@pytest.mark.parametrize("file_name", ["h264_b_frames.mp4", "hevc_open_gop.mp4", "mpeg4_b_frames.mp4"])
def test_delayed_video_starts_at_its_first_frame(file_name, path_of, tmp_path):
    def delay(packet: av.Packet) -> av.Packet:
        packet.pts, packet.dts = packet.pts + 50 * TICKS_PER_FRAME, packet.dts + 50 * TICKS_PER_FRAME
        return packet

    path = copy_video(path_of(file_name), tmp_path / file_name, delay)
    reader = ClipReader()

    assert reader.info(path).num_frames == NUM_FRAMES
    assert numbers_on(reader.read(path, [40, 0, 13])) == [40, 0, 13]
    np.testing.assert_array_equal(reader.frame_indices_at(path, [0.0, 0.4]), [0, 10])


@pytest.mark.parametrize(("suffix", "delay"), [("mp4", 2.0), ("mkv", 2.0), ("ts", 2.0), ("mp4", 0.0), ("mkv", 0.0)])
def test_times_are_those_of_a_clock_that_starts_with_the_sound(suffix, delay, tmp_path):
    path = write_delayed(tmp_path / f"delayed.{suffix}", delay)
    reader = ClipReader()

    info = reader.info(path)
    seconds = [frame.seconds for frame in iterate_frames(path)]

    # A sound's encoder may start with a frame of nothing, 0.064 s, before 0, which mp4 and mkv leave out.
    start = delay + (0.064 if suffix == "ts" else 0.0)
    assert info.start_seconds == pytest.approx(start, abs=1e-3)
    assert info.duration_seconds == pytest.approx(start + NUM_FRAMES / FRAMES_PER_SECOND, abs=1e-3)
    np.testing.assert_allclose(seconds, start + np.arange(NUM_FRAMES) / FRAMES_PER_SECOND, atol=1e-3)
    np.testing.assert_array_equal(reader.frame_indices_at(path, [0.0, start + 1.0, 100.0]), [0, 25, NUM_FRAMES - 1])
    assert number_on(next(iterate_frames(path, start_seconds=start + 0.97)).image) == 25


def write_delayed(path: Path, delay: float) -> str:
    """Write sound from 0 and pictures from some seconds on."""
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"x264-params": "bframes=2"})
        pictures.height, pictures.width, pictures.codec_context.gop_size = HEIGHT, WIDTH, GROUP_SIZE
        sound = output.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000 * 4, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            output.mux(sound.encode(frame))
        output.mux(sound.encode())
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = number + round(delay * FRAMES_PER_SECOND), Fraction(1, FRAMES_PER_SECOND)
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode())
    return str(path)


def test_sound_does_not_matter(path_of, tmp_path):
    path = str(tmp_path / "sound.mkv")
    sound = write_audio(tmp_path / "audio.mp4")
    with av.open(sound) as audio, av.open(path_of("h264_b_frames.mp4")) as video, av.open(path, "w") as output:
        # Most movies have the video first; here the sound is.
        streams = {source: output.add_stream_from_template(source.streams[0]) for source in (audio, video)}
        for source, stream in streams.items():
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)

    assert way_of(path) == "decord"
    assert numbers_on(ClipReader().read(path, [40, 0, 13])) == [40, 0, 13]


def test_video_of_one_frame(tmp_path):
    for file_name in ("h264.mkv", "vp9.webm", "mpeg4.avi", "h264_b_frames.mp4"):
        path = write_video(RECIPE_OF[file_name], tmp_path, shown_numbers=[41])

        assert ClipReader().info(path).num_frames == 1
        assert numbers_on(ClipReader().read(path, [0, 0])) == [41, 41]
        assert [frame.seconds for frame in iterate_frames(path)] == [0.0]


def test_packed_xvid_as_in_ucf101(path_of, tmp_path):
    """XviD puts a B-frame into the packet of the frame shown after it, and an empty frame into the next one."""
    marker = b"\x00\x00\x01\xb2DivX503b1393p"
    with av.open(path_of("mpeg4_b_frames.mp4")) as source:
        header = source.streams.video[0].codec_context.extradata
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    is_b_frame = [packet[packet.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2 for packet in packets]
    packed: list[bytes] = []
    for packet, is_b, is_after_b in zip(packets, is_b_frame, [False, *is_b_frame], strict=False):
        if is_b and not is_after_b:
            packed[-1] += packet
        packed.append(EMPTY_XVID_FRAME if is_b and not is_after_b else packet)
    path = str(tmp_path / "packed.avi")
    with av.open(path, "w") as output:
        stream = output.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.extradata = header + marker
        for number, data in enumerate(packed):
            packet = av.Packet(header + marker + data if number == 0 else data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, FRAMES_PER_SECOND), stream
            packet.is_keyframe = number % GROUP_SIZE == 0
            output.mux(packet)

    assert sum(is_b_frame) > NUM_FRAMES // 2
    assert way_of(path) == "start"
    assert [number_on(frame.image) for frame in iterate_frames(path)] == list(range(NUM_FRAMES))
    assert numbers_on(ClipReader().read(path, [40, 3, 41, 17])) == [40, 3, 41, 17]


def test_hidden_vp8_frames_do_not_count(path_of, tmp_path):
    packet_numbers = iter(range(NUM_FRAMES))

    def hide(packet: av.Packet) -> av.Packet:
        data = bytearray(bytes(packet))
        if next(packet_numbers) % 10 == 5:
            data[0] &= ~video_index._VP8_SHOW_FRAME_BIT
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        hidden.is_keyframe = packet.is_keyframe
        return hidden

    path = copy_video(path_of("vp8.webm"), tmp_path / "hidden.webm", hide)
    shown = [number for number in range(NUM_FRAMES) if number % 10 != 5]

    # The pictures after a hidden one still show what was encoded.
    assert ClipReader().info(path).num_frames == len(shown)
    assert numbers_on(ClipReader().read(path, range(len(shown)))) == shown


def test_stream_cut_before_its_first_key_frame_starts_there(path_of, tmp_path):
    def drop_a_third(data: bytes) -> bytes:
        return data[len(data) // 3 // 188 * 188 :]

    path = copy_bytes(path_of("h264.ts"), tmp_path / "cut.ts", drop_a_third)
    frames = list(iterate_frames(path))
    first_number = number_on(frames[0].image)

    assert first_number > 0
    assert first_number % GROUP_SIZE == 0
    assert [frame.index for frame in frames] == list(range(NUM_FRAMES - first_number))
    assert numbers_on(ClipReader().read(path, [0, 9, 3])) == [first_number, first_number + 9, first_number + 3]


def test_mkv_without_its_first_key_frame_starts_at_the_second(path_of, tmp_path):
    with av.open(path_of("h264_b_frames.mp4")) as source, av.open(str(tmp_path / "cut.mkv"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[1:-1]:
            packet.stream = stream
            output.mux(packet)

    assert ClipReader().info(tmp_path / "cut.mkv").num_frames == NUM_FRAMES - GROUP_SIZE
    assert numbers_on(ClipReader().read(tmp_path / "cut.mkv", [30, 0, 47])) == [42, 12, 59]


def test_seek_that_leads_too_far_does_not_lead_to_wrong_frames(path_of, monkeypatch):
    class LeadsTooFar:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, timestamp, *, stream):
            self.container.seek(48 * TICKS_PER_FRAME, stream=stream)

    def open_far(path):
        container, stream = opening.open_video(path)
        return LeadsTooFar(container), stream

    monkeypatch.setattr(pyav_file, "open_video", open_far)
    monkeypatch.setattr(pyav_file, "_MAX_PACKETS_PASSED_OVER", 0)

    assert numbers_on(ClipReader().read(path_of("hevc_open_gop.mp4"), [13, 50])) == [13, 50]


def test_rotated_video_comes_out_upright(path_of, tmp_path):
    def turn_clockwise(data: bytes) -> bytes:
        # The display matrix in the track header: (x, y) goes to (height - y, x).
        start = data.index(b"tkhd") + 40
        matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
        return data[:start] + matrix + data[start + 36 :]

    path = copy_bytes(path_of("h264_b_frames.mp4"), tmp_path / "rotated.mp4", turn_clockwise)
    info = ClipReader().info(path)
    clip = ClipReader().read(path, [40, 5])

    assert (info.height, info.width) == (WIDTH, HEIGHT)
    assert clip.shape == (2, WIDTH, HEIGHT, 3)
    assert numbers_on(np.rot90(clip, 1, axes=(1, 2))) == [40, 5]
    np.testing.assert_array_equal(next(iterate_frames(path, start_seconds=1.6)).image, clip[0])


# Times


def test_info_describes_the_video(path_of):
    path = path_of("h264_b_frames.mp4")

    info = ClipReader().info(path)

    assert (info.path, info.num_frames, info.height, info.width) == (path, NUM_FRAMES, HEIGHT, WIDTH)
    assert (info.frames_per_second, info.duration_seconds, info.random_access) == (25.0, 2.4, True)


def test_frame_indices_follow_the_timestamps_of_a_variable_rate(path_of):
    path = path_of("h264_variable_rate.mp4")
    seconds = VARIABLE_TIMES / 1000
    reader = ClipReader()

    np.testing.assert_array_equal(reader.frame_indices_at(path, seconds), range(NUM_FRAMES))
    np.testing.assert_array_equal(reader.frame_indices_at(path, seconds[1:] - 0.004), range(1, NUM_FRAMES))
    np.testing.assert_array_equal(reader.frame_indices_at(path, seconds[:-1] + 0.004), range(NUM_FRAMES - 1))
    assert reader.info(path).frames_per_second == pytest.approx((NUM_FRAMES - 1) / seconds[-1])


def test_frame_indices_are_clamped_and_keep_the_shape(path_of):
    indices = ClipReader().frame_indices_at(path_of("h264.ts"), [[-3.0, 0.0], [1.0, 99.0]])

    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, [[0, 0], [25, NUM_FRAMES - 1]])


def test_frame_indices_leave_room_for_dropped_frames_of_avi(tmp_path):
    kept = [number for number in range(NUM_FRAMES) if number % 7 != 3]
    path = write_video(RECIPE_OF["mpeg4.avi"], tmp_path, shown_numbers=kept)
    reader = ClipReader()

    frame_indices = reader.frame_indices_at(path, np.array(kept) / FRAMES_PER_SECOND)

    assert reader.info(path).num_frames == len(kept)
    assert numbers_on(reader.read(path, frame_indices)) == kept


def test_frame_indices_use_a_constant_rate_without_timestamps(path_of):
    reader = ClipReader()
    path = path_of("h264_without_times.h264")

    np.testing.assert_array_equal(reader.frame_indices_at(path, [0.0, 0.4, 2.0]), [0, 10, 50])


def test_frame_indices_refuse_times_that_are_not_finite(path_of):
    with pytest.raises(ValueError, match="finite"):
        ClipReader().frame_indices_at(path_of("h264.mkv"), [0.0, np.nan])


# Processes, threads, files


class NumbersOnFrames(Dataset):
    def __init__(self, reader: ClipReader, paths: list[str]) -> None:
        self.reader, self.paths = reader, paths

    def __len__(self) -> int:
        return NUM_FRAMES

    def __getitem__(self, item: int) -> list[int]:
        frame_indices = [item, (item * 7) % NUM_FRAMES]
        return [number for path in self.paths for number in numbers_on(self.reader.read(path, frame_indices))]


@pytest.mark.parametrize("backend", ["auto", pytest.param("decord", marks=needs_decord)])
@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_frames_as_the_main_process(start_method, backend, path_of):
    if sys.platform == "win32" and start_method == "fork":
        pytest.skip("Windows cannot fork")
    paths = [path_of("h264_b_frames.mp4"), path_of("vp8.webm" if backend == "decord" else "mpeg4_b_frames.avi")]
    dataset = NumbersOnFrames(ClipReader(backend=backend), paths)
    # The main process reads first: its open files must not be used, nor freed, by a forked worker.
    expected = [dataset[item] for item in range(NUM_FRAMES)]

    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=1,
        multiprocessing_context=start_method,
        timeout=30,
        persistent_workers=True,
    )

    assert list(loader) == expected
    assert list(loader) == expected


def test_error_of_a_worker_reaches_the_main_process(tmp_path):
    dataset = NumbersOnFrames(ClipReader(), [str(tmp_path / "missing.mp4")])
    frames = iter(DataLoader(Subset(dataset, [0]), batch_size=None, num_workers=1, timeout=30))

    with pytest.raises(VideoReadError, match="missing.mp4"):
        next(frames)

    # At the end of the data the worker ends; left to the garbage collector, that takes DataLoader five seconds.
    assert list(frames) == []


def test_reader_is_pickled_without_its_open_files(path_of):
    reader = ClipReader(backend="pyav", max_open_files=2, timeout_seconds=7.0)
    reader.read(path_of("h264.mkv"), [3])

    copy = pickle.loads(pickle.dumps(reader))

    assert (copy.backend, copy.max_open_files, copy.timeout_seconds) == ("pyav", 2, 7.0)
    assert number_on(copy.read(path_of("h264.mkv"), [3])[0]) == 3


def test_reader_keeps_no_more_files_open_than_allowed(path_of):
    reader = ClipReader(max_open_files=2)

    for file_name in ("h264.mkv", "vp8.webm", "mjpeg.mov", "h264.mkv", "h264_b_frames.mp4"):
        assert number_on(reader.read(path_of(file_name), [5])[0]) == 5
        assert len(reader._open_files) <= 2

    names = [os.path.basename(file.path) for file in reader._open_files]
    assert names == ["h264.mkv", "h264_b_frames.mp4"]


@pytest.mark.parametrize("arguments", [{"max_open_files": 0}, {"timeout_seconds": 0.0}])
def test_reader_refuses_settings_that_are_not_positive(arguments):
    with pytest.raises(ValueError, match="positive"):
        ClipReader(**arguments)


def test_threads_share_a_reader(path_of):
    reader = ClipReader()
    path = path_of("h264.mkv")

    with ThreadPoolExecutor(4) as threads:
        clips = list(threads.map(lambda i: reader.read(path, [i, NUM_FRAMES - 1 - i]), range(20)))

    assert [numbers_on(clip) for clip in clips] == [[i, NUM_FRAMES - 1 - i] for i in range(20)]


def test_rewritten_file_is_read_anew(tmp_path):
    reader = ClipReader()
    path = write_video(RECIPE_OF["h264.mkv"], tmp_path)
    assert reader.info(path).num_frames == NUM_FRAMES
    assert number_on(reader.read(path, [3])[0]) == 3

    write_video(RECIPE_OF["h264.mkv"], tmp_path, shown_numbers=range(20, 50))

    assert reader.info(path).num_frames == 30
    assert number_on(reader.read(path, [3])[0]) == 23


def test_index_remembers_files_by_their_number_of_frames(tmp_path, monkeypatch):
    scanned = []
    scan = video_index._scan
    monkeypatch.setattr(video_index, "_scan", lambda path: scanned.append(Path(path).name) or scan(path))
    # Room for two files.
    monkeypatch.setattr(video_index, "_MAX_INDEXED_FRAMES", 2 * (20 + video_index._FRAMES_PER_FILE))
    monkeypatch.setattr(video_index, "cache", video_index._Cache())
    paths = []
    for name in "abc":
        (tmp_path / name).mkdir()
        paths.append(write_video(RECIPE_OF["h264.mkv"], tmp_path / name, shown_numbers=range(20)))
    a, b, c = paths

    for path in (a, b, a, c, a, b):
        assert ClipReader().info(path).num_frames == 20

    # `b` was not used for longest when `c` came.
    assert len(scanned) == 4


@needs_decord
def test_bridge_of_decord_to_torch_does_not_matter(path_of):
    import decord

    decord.bridge.set_bridge("torch")
    try:
        clip = ClipReader(backend="decord").read(path_of("h264.mkv"), [3])
    finally:
        decord.bridge.reset_bridge()

    assert isinstance(clip, np.ndarray)


def test_import_loads_neither_decord_nor_torch():
    # In packages that hold nothing: the ones above import the model.
    code = (
        "import sys, types\n"
        "for name, folder in (('classquery', ''), ('classquery.data', ''), ('classquery.data.video', sys.argv[1])):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [folder]\n"
        "import classquery.data.video.reader\n"
        "sys.exit('decord' in sys.modules or 'torch' in sys.modules)"
    )
    folder = str(Path(clip_reader.__file__).parent)

    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0


# Files that cannot be read


@pytest.fixture
def bad_path_of(path_of: Callable[[str], str], tmp_path: Path) -> Callable[[str], str]:
    """Return the function that makes a file of some kind of badness."""

    def make(kind: str) -> str:
        target = tmp_path / f"{kind}.mp4"
        if kind == "folder":
            target.mkdir()
        elif kind == "empty":
            target.touch()
        elif kind == "text":
            target.write_text("This is not a video. " * 100)
        elif kind == "audio":
            return write_audio(target)
        elif kind == "truncated":
            return copy_bytes(path_of("h264_b_frames.mp4"), target, lambda data: data[:1000])
        elif kind == "unknown_codec":
            return copy_bytes(path_of("h264_b_frames.mp4"), target, lambda data: data.replace(b"avc1", b"zzzz"))
        return str(target)

    return make


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "file is missing"),
        ("folder", "not a regular file"),
        ("empty", "file is empty"),
        ("text", "not a video"),
        ("audio", "no video stream"),
        ("truncated", "without its index .moov atom."),
        ("unknown_codec", "no decoder"),
    ],
)
def test_unreadable_file_raises_an_error_that_names_file_frames_and_cause(kind, cause, bad_path_of):
    path = bad_path_of(kind)
    reader = ClipReader()

    with pytest.raises(VideoReadError, match=rf"^frames 3, 9: cannot read .*{kind}\.mp4: .*{cause}"):
        reader.read(path, [3, 9])
    for use in (reader.info, iterate_frames, lambda path: reader.frame_indices_at(path, [0.0])):
        with pytest.raises(VideoReadError, match=rf"cannot read .*{kind}\.mp4: .*{cause}"):
            use(path)


def numbers_and_error(path: str) -> tuple[list[int], str]:
    """Stream a video: the numbers on its frames and the message of the error that ends them."""
    numbers = []
    try:
        for frame in iterate_frames(path):
            numbers.append(number_on(frame.image))
    except VideoReadError as error:
        return numbers, str(error)
    return numbers, ""


def position_of_key_frame(path: str, number: int) -> int:
    with av.open(path) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.is_keyframe][number // GROUP_SIZE]


def cut_in_key_frame(number: int, source: str, target: Path) -> str:
    position = position_of_key_frame(source, number)
    return copy_bytes(source, target, lambda data: data[: position + 50])


def test_truncated_mp4_gives_its_frames_and_then_raises(path_of, tmp_path):
    whole = copy_video(
        path_of("h264_b_frames.mp4"), tmp_path / "whole.mp4", lambda packet: packet, movflags="faststart"
    )
    path = cut_in_key_frame(24, whole, tmp_path / "cut.mp4")

    numbers, error = numbers_and_error(path)

    assert numbers == list(range(24))
    assert error.endswith("the file is truncated, its header promises 1.4 s more; fetch or export it again")
    assert ClipReader().info(path).num_frames == 24
    assert numbers_on(ClipReader().read(path, [23, 3])) == [23, 3]
    with pytest.raises(VideoReadError, match="frame 59 out of range.*truncated"):
        ClipReader().read(path, [0, 59])


def test_truncated_avi_gives_its_frames_and_then_raises(path_of, tmp_path):
    path = cut_in_key_frame(24, path_of("mpeg4.avi"), tmp_path / "cut.avi")

    numbers, error = numbers_and_error(path)

    assert numbers == list(range(24))
    assert "truncated" in error


def test_truncated_mkv_ends_early(path_of, tmp_path):
    path = cut_in_key_frame(24, path_of("h264.mkv"), tmp_path / "cut.mkv")

    assert numbers_and_error(path) == (list(range(24)), "")


def damage(path: str, number: int, target: Path) -> str:
    """Copy a video with a packet, that of a key frame, full of wrong bytes."""
    with av.open(path) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.is_keyframe][number // GROUP_SIZE]
    return copy_bytes(path, target, lambda data: data.replace(packet, b"\xff" * len(packet)))


@pytest.mark.parametrize("file_name", ["h264_b_frames.mp4", "h264.mkv", "vp9.webm", "av1.mp4"])
def test_frames_behind_damage_come_as_in_a_player_and_what_is_missing_is_said(file_name, path_of, tmp_path):
    path = damage(path_of(file_name), 36, tmp_path / file_name)
    frames, seen = iterate_frames(path), {}

    def stream() -> None:
        seen.update((frame.index, number_on(frame.image)) for frame in frames)

    with pytest.raises(VideoReadError, match=r"frames? 3[56].* cannot be decoded, the data is damaged"):
        stream()

    assert 36 not in seen
    assert list(seen) == sorted(seen)
    # Only of the group whose key frame is damaged some pictures are not what they were.
    intact = [*range(33), *range(48, NUM_FRAMES)]
    assert [seen[index] for index in intact] == intact


@pytest.mark.parametrize("file_name", ["h264_b_frames.mp4", "vp9.webm"])
def test_clips_without_damaged_frames_are_read_and_others_raise(file_name, path_of, tmp_path):
    path = damage(path_of(file_name), 36, tmp_path / file_name)

    assert numbers_on(ClipReader().read(path, [5, 30, 50])) == [5, 30, 50]
    for clip in ([36], [30, 40], [41, 50]):
        with pytest.raises(VideoReadError, match=r"^frames? .*: frames? .*cannot be decoded, the data is damaged"):
            ClipReader().read(path, clip)


@pytest.mark.parametrize("file_name", ["h264_b_frames.mp4", "vp9.webm"])
def test_around_a_needed_frame_that_is_lost_others_are_decoded(file_name, path_of, tmp_path):
    path = damage(path_of(file_name), 36, tmp_path / file_name)
    frames, seen = iterate_frames(path, needed=range(0, NUM_FRAMES, 6)), {}

    def stream() -> None:
        seen.update((frame.index, frame) for frame in frames)

    with pytest.raises(VideoReadError, match=r"frames? 3[56].* cannot be decoded"):
        stream()

    assert 36 not in seen
    assert list(seen) == sorted(seen)
    intact = [*range(33), *range(48, NUM_FRAMES)]
    assert set(intact) <= set(seen)
    assert [number_on(seen[index].image) for index in intact[::6]] == intact[::6]


def test_counted_frames_behind_damage_are_shown_and_not_trained_on(path_of, tmp_path):
    path = damage(path_of("mpeg4.mp4"), 36, tmp_path / "damaged.mp4")

    numbers, error = numbers_and_error(path)

    assert numbers[:36] == list(range(36))
    assert numbers[-12:] == list(range(48, NUM_FRAMES))
    assert "frame 36 cannot be decoded" in error
    assert "may be a few off" in error
    assert numbers_on(ClipReader().read(path, [5, 30])) == [5, 30]
    with pytest.raises(VideoReadError, match="frame 50 cannot be decoded, the data is damaged"):
        ClipReader().read(path, [30, 50])


@pytest.mark.parametrize("backend", ["pyav", pytest.param("decord", marks=needs_decord)])
def test_colon_in_a_relative_name_is_no_protocol(backend, path_of, tmp_path, monkeypatch):
    shutil.copy(path_of("h264.mkv"), tmp_path / "cam1:morning.mkv")
    monkeypatch.chdir(tmp_path)

    frames = ClipReader(backend=backend).read("cam1:morning.mkv", [3])

    assert number_on(frames[0]) == 3


@needs_decord
def test_name_that_is_not_utf_8_is_read_or_refused_with_a_reason(path_of, tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.mkv"))
    shutil.copy(path_of("h264.mkv"), path)

    assert number_on(ClipReader().read(path, [3])[0]) == 3
    with pytest.raises(VideoReadError, match="not UTF-8"):
        ClipReader(backend="decord").read(path, [3])


def test_file_without_the_right_to_read_it_is_one_clean_error(path_of, tmp_path, monkeypatch):
    # A copy: what was read before is known.
    path = shutil.copy(path_of("h264.mkv"), tmp_path / "mine.mkv")

    def refuse(path, *arguments, **options):
        raise av.error.PermissionError(13, "Permission denied")

    # Whoever is root may read every file, so the system is told to refuse.
    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)

    with pytest.raises(VideoReadError, match="Permission denied; check the rights"):
        ClipReader().info(path)


@pytest.mark.parametrize("file_name", ["h264_b_frames.mp4", "h264.mkv", "mpeg4_b_frames.avi", "h264.ts", "vp9.webm"])
@pytest.mark.parametrize("count", [25, pytest.param(160, marks=pytest.mark.slow)])
def test_mutated_video_is_read_or_refused_and_nothing_else(count, file_name, path_of, tmp_path):
    path = tmp_path / file_name
    shutil.copy(path_of(file_name), path)

    def read(path: Path) -> None:
        reader = ClipReader(timeout_seconds=20)
        num_frames = reader.info(path).num_frames
        assert reader.read(path, [0, num_frames // 2, num_frames - 1]).shape[0] == 3
        indices = [frame.index for frame in iterate_frames(path)]
        assert indices == sorted(set(indices))

    try_mutations(read, path, VideoReadError, count=count)


@needs_decord
@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_mutated_video_is_read_with_decord_or_refused(count, path_of, tmp_path):
    """Whatever decord makes of the pixels: what is damaged so that it counts other frames is refused before."""
    path = Path(shutil.copy(path_of("h264_b_frames.mp4"), tmp_path))

    def read(path: Path) -> None:
        reader = ClipReader(backend="decord", timeout_seconds=20)
        num_frames = reader.info(path).num_frames
        assert reader.read(path, [0, num_frames // 2, num_frames - 1]).shape[0] == 3

    try_mutations(read, path, VideoReadError, count=count)


@pytest.mark.parametrize("size", [(1500, 2), (2, 2000), (40, 1400)])
def test_long_and_narrow_frames_are_refused_before_they_are_resized(size, tmp_path):
    path = str(tmp_path / "narrow.mkv")
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((*size, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode())

    with pytest.raises(VideoReadError, match=rf"{size[1]}x{size[0]} pixels, where one side may be 32 times the other"):
        ClipReader().info(path)


def write_huge_image(path: Path, side: int) -> str:
    """Write a black PNG with a bit per pixel: a few kilobytes, which become gigabytes."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return str(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 30_000])
def test_huge_images_are_refused_before_they_are_decoded(side, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    path = write_huge_image(folder / "00001.png", side)

    for read in (ClipReader().info, iterate_frames, lambda path: read_frame_folder(folder, [0])):
        with pytest.raises(VideoReadError, match=r"pixels"):
            read(path)


def test_animated_webp_is_called_by_its_name(tmp_path):
    path = tmp_path / "moving.webp"
    pictures = [Image.fromarray(paint(number)) for number in range(3)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])

    with pytest.raises(VideoReadError, match="animated WEBP, which FFmpeg does not decode; convert it"):
        ClipReader().info(path)


def test_title_in_latin_1_does_not_matter(path_of, tmp_path):
    path = copy_bytes(
        path_of("mpeg4.avi"), tmp_path / "title.avi", lambda data: data.replace(b"Lavf", b"\xe9\xe8\xff ")
    )

    assert numbers_on(ClipReader().read(path, [30, 3])) == [30, 3]


# Frames that cannot be read


@pytest.mark.parametrize("file_name", ["h264.mkv", "mpeg4.avi"])
@pytest.mark.parametrize("frame_index", [NUM_FRAMES, 10**6, -1])
def test_frame_out_of_range_raises(file_name, frame_index, path_of):
    with pytest.raises(VideoReadError, match=rf"{file_name}: frame {frame_index} out of range.* has 60 frames"):
        ClipReader().read(path_of(file_name), [0, frame_index])


def test_message_abbreviates_many_frames(path_of):
    with pytest.raises(VideoReadError, match=r"^frames 100, 101, 102, 103, \.\.\., 131 \(32 in all\): cannot read"):
        ClipReader().read(path_of("h264.mkv"), range(100, 132))


@pytest.mark.parametrize("frame_indices", [[], [1.5], [[1, 2]], 3])
def test_read_refuses_what_is_no_list_of_frame_numbers(frame_indices, path_of):
    with pytest.raises(ValueError, match="frame_indices"):
        ClipReader().read(path_of("h264.mkv"), frame_indices)


def test_decoder_that_hangs_raises_and_the_reader_goes_on(path_of, monkeypatch):
    path = path_of("h264.mkv")
    reader = ClipReader(timeout_seconds=0.2)
    reader.info(path)
    released = threading.Event()

    def hang(*arguments: object) -> None:
        released.wait(30)
        raise VideoReadError("nobody listens any more")

    with monkeypatch.context() as patch:
        patch.setattr(pyav_file.PyavFile, "read", hang)

        with pytest.raises(VideoReadError, match=r"^frames 4, 8: cannot read .*h264\.mkv: timed out after 0\.2 s"):
            reader.read(path, [4, 8])

    reader.timeout_seconds = 30.0
    assert numbers_on(reader.read(path, [4, 8])) == [4, 8]
    released.set()


# Slow: real files, memory


def real_videos() -> list[Path]:
    """Return the videos in the folder that CLASSQUERY_SAMPLES names."""
    folder = os.environ.get("CLASSQUERY_SAMPLES")
    return sorted(path for path in Path(folder).iterdir() if path.suffix in (".avi", ".mp4")) if folder else []


@pytest.mark.slow
@pytest.mark.skipif(not real_videos(), reason="CLASSQUERY_SAMPLES names no folder with videos")
@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.name)
def test_real_videos_are_read_exactly(path):
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    random = np.random.default_rng(0)
    clips = [random.permutation(len(expected))[:16] for _ in range(12)]
    clips += [start + 4 * np.arange(16) for start in random.integers(0, len(expected) - 61, 12)]
    backends = ["auto", "decord"] if needs_decord.args[0] is False and way_of(path) == "decord" else ["auto"]

    for reader in (ClipReader(backend=backend) for backend in backends):
        np.testing.assert_array_equal(reader.read(path, range(len(expected))), expected)
        for clip in clips:
            np.testing.assert_array_equal(reader.read(path, clip), expected[clip])
        for frame_index in random.permutation(len(expected)):
            np.testing.assert_array_equal(reader.read(path, [frame_index])[0], expected[frame_index])
    np.testing.assert_array_equal(np.stack([frame.image for frame in iterate_frames(path)]), expected)
    if "decord" not in backends:
        with pytest.raises(VideoReadError, match="decord"):
            ClipReader(backend="decord").read(path, [0])


# Reads clips from six files in turn with room for four, and prints how much memory the later nine tenths added.
READ_MANY_CLIPS = """
import sys
import numpy as np
from classquery.data.video.reader import ClipReader

def used_mebibytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

backend, num_clips, *paths = sys.argv[1:]
reader, random = ClipReader(backend=backend), np.random.default_rng(0)
for clip in range(int(num_clips)):
    reader.read(paths[clip % len(paths)], np.sort(random.integers(0, 60, 8)))
    if clip == int(num_clips) // 10:
        before = used_mebibytes()
print(used_mebibytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("backend", ["auto", pytest.param("decord", marks=needs_decord)])
def test_memory_stays_flat_over_a_thousand_clips(backend, path_of):
    names = ["h264_b_frames.mp4", "h264.mkv", "vp9.webm", "h264_pyramid.mp4", "mjpeg.mov", "vp8.webm"]
    names += ["mpeg4_b_frames.avi", "hevc_open_gop.mp4"] if backend == "auto" else []
    command = [sys.executable, "-c", READ_MANY_CLIPS, backend, "1000", *map(path_of, names)]

    added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # A clip has 0.2 MiB, a leak of one per read would add 170; a leak of an open file, some MiB each, even more.
    assert added < 20
