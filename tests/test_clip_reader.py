"""Every frame of the videos made here shows its own number, so that a wrong frame is noticed."""

import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, Subset

from classquery.data import clip_reader
from classquery.data.clip_reader import ClipReader, VideoReadError, iterate_frames


NUM_FRAMES = 60
FRAMES_PER_SECOND = 25
HEIGHT, WIDTH = 64, 128
# A frame shows its number as bits: two rows of eight black or white cells.
NUM_ROWS, NUM_COLUMNS = 2, 8
# Of the time base that FFmpeg gives an mp4 with 25 frames per second.
TICKS_PER_FRAME = 512
GROUP_SIZE = 12
# Milliseconds: intervals from 10 to 170, no two neighbours alike.
VARIABLE_TIMES = np.cumsum([0, *(10 + 37 * i % 170 for i in range(NUM_FRAMES - 1))])


@dataclass(frozen=True)
class Recipe:
    """How to encode a test video, and the way in which it must be read."""

    file_name: str
    encoder: str
    way: str
    """decord; seek: PyAV from a key frame; start: PyAV from the first frame."""
    options: dict[str, str] = field(default_factory=dict)
    max_b_frames: int | None = None
    pixel_format: str = "yuv420p"
    times: np.ndarray | None = None


RECIPES = [
    Recipe("h264_b_frames.mp4", "libx264", "decord", {"x264-params": "bframes=3:b-adapt=0"}),
    Recipe("h264_variable_rate.mp4", "libx264", "decord", times=VARIABLE_TIMES),
    Recipe("h264_fragments.mp4", "libx264", "decord", {"movflags": "frag_keyframe+empty_moov"}),
    Recipe("h264.mkv", "libx264", "decord"),
    Recipe("h264_open_gop.mp4", "libx264", "start", {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
    Recipe("h264_intra_refresh.mp4", "libx264", "start", {"x264-params": "intra-refresh=1:bframes=0"}),
    Recipe("h264.avi", "libx264", "start"),
    Recipe("h264.ts", "libx264", "start"),
    Recipe("h264_without_times.h264", "libx264", "start"),
    Recipe("hevc_open_gop.mp4", "libx265", "seek", {"x265-params": "open-gop=1:bframes=3:log-level=none"}),
    Recipe("av1.mp4", "libsvtav1", "seek", {"preset": "12", "crf": "10"}),
    Recipe("vp8.webm", "libvpx", "decord", {"deadline": "realtime"}),
    Recipe("vp9.webm", "libvpx-vp9", "decord", {"deadline": "realtime", "cpu-used": "8"}),
    Recipe("mjpeg.mov", "mjpeg", "decord", pixel_format="yuvj420p"),
    Recipe("mpeg2.mpg", "mpeg2video", "start", max_b_frames=2),
    Recipe("mpeg2.mkv", "mpeg2video", "seek", max_b_frames=2),
    Recipe("mpeg4.avi", "mpeg4", "start", max_b_frames=0),
    Recipe("mpeg4_b_frames.avi", "mpeg4", "start", max_b_frames=2),
    Recipe("mpeg4_b_frames.mp4", "mpeg4", "start", max_b_frames=2),
    Recipe("wmv2.wmv", "wmv2", "start"),
]
RECIPE_OF = {recipe.file_name: recipe for recipe in RECIPES}


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


def paint(number: int) -> np.ndarray:
    bits = (number >> np.arange(NUM_ROWS * NUM_COLUMNS)) & 1
    cells = np.where(bits, 220, 30).astype(np.uint8).reshape(NUM_ROWS, NUM_COLUMNS)
    gray = np.kron(cells, np.ones((HEIGHT // NUM_ROWS, WIDTH // NUM_COLUMNS), np.uint8))
    return np.repeat(gray[..., None], 3, axis=-1)


def number_on(image: np.ndarray) -> int:
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    cells = image.reshape(NUM_ROWS, HEIGHT // NUM_ROWS, NUM_COLUMNS, WIDTH // NUM_COLUMNS, 3).mean(axis=(1, 3, 4))
    return int(((cells.reshape(-1) > 125) << np.arange(NUM_ROWS * NUM_COLUMNS)).sum())


def numbers_on(images: np.ndarray) -> list[int]:
    return [number_on(image) for image in images]


def write_video(recipe: Recipe, folder: Path, shown_numbers: range | list[int] = range(NUM_FRAMES)) -> str:
    path = str(folder / recipe.file_name)
    with av.open(
        path, "w", options={key: recipe.options[key] for key in recipe.options if key == "movflags"}
    ) as output:
        stream = output.add_stream(recipe.encoder, rate=FRAMES_PER_SECOND, options=recipe.options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, recipe.pixel_format
        stream.codec_context.gop_size, stream.codec_context.thread_count = GROUP_SIZE, 1
        if recipe.max_b_frames is not None:
            stream.codec_context.max_b_frames = recipe.max_b_frames
        if recipe.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in shown_numbers:
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts = number if recipe.times is None else int(recipe.times[number])
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
    index = clip_reader._index_video(clip_reader._identify(path))
    if index.use_decord:
        return "decord"
    return "seek" if index.info.random_access else "start"


# Frames


@each_recipe
def test_read_returns_the_frames_asked_in_random_order(recipe, path_of):
    path = path_of(recipe.file_name)
    random = np.random.default_rng(0)
    reader = ClipReader()

    clips = [random.integers(0, NUM_FRAMES, 5) for _ in range(12)]

    assert way_of(path) == recipe.way
    assert [numbers_on(reader.read(path, clip)) for clip in clips] == [clip.tolist() for clip in clips]


@each_recipe
def test_read_returns_every_frame_alone(recipe, path_of):
    path = path_of(recipe.file_name)
    reader = ClipReader()

    assert [number_on(reader.read(path, [i])[0]) for i in range(NUM_FRAMES)] == list(range(NUM_FRAMES))


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


def test_iterate_frames_yields_nothing_after_the_end(path_of):
    assert list(iterate_frames(path_of("h264.mkv"), start_seconds=100.0)) == []


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


def test_hidden_vp8_frames_do_not_count(path_of, tmp_path):
    packet_numbers = iter(range(NUM_FRAMES))

    def hide(packet: av.Packet) -> av.Packet:
        data = bytearray(bytes(packet))
        if next(packet_numbers) % 10 == 5:
            data[0] &= ~clip_reader._VP8_SHOW_FRAME_BIT
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
    path = path_of("hevc_open_gop.mp4")
    last_key_frame = 48 * TICKS_PER_FRAME
    monkeypatch.setattr(clip_reader._VideoIndex, "seek_point_of", lambda index, frame_index: last_key_frame)

    assert numbers_on(ClipReader().read(path, [13, 50])) == [13, 50]


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


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_read_the_same_frames_as_the_main_process(start_method, path_of):
    if sys.platform == "win32" and start_method == "fork":
        pytest.skip("Windows cannot fork")
    dataset = NumbersOnFrames(ClipReader(), [path_of("h264_b_frames.mp4"), path_of("mpeg4_b_frames.avi")])
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
    reader = ClipReader(max_open_files=2, timeout_seconds=7.0)
    reader.read(path_of("h264.mkv"), [3])

    copy = pickle.loads(pickle.dumps(reader))

    assert (copy.max_open_files, copy.timeout_seconds) == (2, 7.0)
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


def test_bridge_of_decord_to_torch_does_not_matter(path_of):
    decord.bridge.set_bridge("torch")
    try:
        clip = ClipReader().read(path_of("h264.mkv"), [3])
    finally:
        decord.bridge.reset_bridge()

    assert isinstance(clip, np.ndarray)


def test_import_loads_neither_decord_nor_torch():
    # The file alone: the package above it imports the model.
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('decord' in sys.modules or 'torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code, clip_reader.__file__], check=False).returncode == 0


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


def test_damaged_middle_gives_the_frames_before_it_and_then_raises(path_of, tmp_path):
    position = position_of_key_frame(path_of("h264_b_frames.mp4"), 36)
    path = copy_bytes(
        path_of("h264_b_frames.mp4"),
        tmp_path / "damaged.mp4",
        lambda data: data[:position] + b"\xff" * 8 + data[position + 8 :],
    )

    numbers, error = numbers_and_error(path)

    # The decoder holds some frames back for reordering when it meets the damage.
    assert numbers == list(range(len(numbers)))
    assert 24 < len(numbers) <= 36
    assert "damaged" in error
    assert number_on(ClipReader().read(path, [5])[0]) == 5
    with pytest.raises(VideoReadError, match="^frame 36: .*damaged"):
        ClipReader().read(path, [36])


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
        patch.setattr(clip_reader, "_decode_with_decord", hang)

        with pytest.raises(VideoReadError, match=r"^frames 4, 8: cannot read .*h264\.mkv: timed out after 0\.2 s"):
            reader.read(path, [4, 8])

    reader.timeout_seconds = 30.0
    assert numbers_on(reader.read(path, [4, 8])) == [4, 8]
    released.set()
