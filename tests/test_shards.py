"""Shards: the same clips as from files, in any order, from any store, and what becomes of bad ones."""

import io
import itertools
import json
import shutil
from pathlib import Path

import av
import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from http_store import HttpStore
from hub_stand_in import TOKEN, HubStandIn
from painted_frames import numbers_on, paint
from PIL import Image
from tiny_training import tiny_trainer

from classquery.data import load_action_dataset, load_action_labels, make_clips, push_action_dataset
from classquery.data.__main__ import main
from classquery.data.annotations.schema import AnnotationError
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.preparation.preparing import Encoding, TimedImage, encode
from classquery.data.shards import writing
from classquery.data.shards.cutting import SHARD_ENCODING, cut_folder, cut_video
from classquery.data.shards.layout import WINDOW_FEATURES
from classquery.data.shards.sharing import ShardUploadError
from classquery.data.shards.store import ShardStore
from classquery.data.shards.stream import Shards
from classquery.data.shards.windows import plan_windows
from classquery.data.shards.writing import write_shards
from classquery.data.transforms import ClipTransform
from classquery.data.video.opening import VideoBytes
from classquery.data.video.reader import ClipReader, VideoReadError


SAMPLING = {"num_labels": 8, "num_frames": 4, "frame_stride": 2, "frames_per_second": 15.0}
# Windows of two or three keyframes a second apart, about five shards.
WRITING = {"clip_seconds": 1.1, "keyframes_per_row": 3, "shard_bytes": 60_000}


@pytest.fixture(scope="module")
def copied(demo_dir, tmp_path_factory):
    """The demo data as shards of copied packets."""
    folder = tmp_path_factory.mktemp("shards") / "copied"
    assert write_shards("ava", demo_dir, folder, encoding=None, **WRITING) == []
    return folder


def clips_of(folder: Path, split: str = "train", **options):
    return make_clips(load_action_dataset("shards", folder, split), **SAMPLING | options)


def names(clips) -> list[str]:
    return [clip and clip["clip_id"] for clip in clips]


def assert_same_clips(streamed, expected) -> None:
    for clip, other in itertools.zip_longest(streamed, expected):
        assert clip.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(clip[name], value) if isinstance(value, torch.Tensor) else clip[name] == value


# What is in them


@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_copied_clips_are_those_of_the_files_bit_for_bit(demo_dir, copied, backend):
    files = make_clips(load_action_dataset("ava", demo_dir, "train"), **SAMPLING)
    stream = clips_of(copied, reader=ClipReader(backend=backend))

    assert stream.clip_ids == files.clip_ids
    assert len(stream) == len(files) == 14
    assert load_action_labels("shards", copied) == load_action_labels("ava", demo_dir)
    assert_same_clips(stream, (files[index] for index in range(14)))


def test_encoded_frames_are_those_of_the_original_by_number(two_movies, tmp_path):
    painted = tmp_path / "painted.mp4"
    encode(painted, (TimedImage(number / 25, paint(number)) for number in range(40)), 25, Encoding(gop=250))
    cut = cut_video(str(painted), range(7, 34), SHARD_ENCODING)
    assert (cut.frames, cut.is_copied) == (range(7, 34), False)
    assert numbers_on(ClipReader().read(VideoBytes("cut", cut.content), range(27))) == list(range(7, 34))

    movie = str(two_movies / "demo_val_000.mp4")
    cut = cut_video(movie, range(7, 24), SHARD_ENCODING)
    frames = ClipReader().read(cut_in_memory(cut), range(17)).astype(np.float32)
    original = ClipReader().read(movie, cut.frames)
    assert 10 * np.log10(255**2 / np.square(frames - original).mean()) > 40


def cut_in_memory(cut) -> VideoBytes:
    return VideoBytes("cut", cut.content)


@pytest.mark.parametrize("frames", [range(7, 34), range(0, 1), range(12, 13), range(39, 40), range(40)])
@pytest.mark.parametrize(("gop", "suffix"), [(12, ".mp4"), (250, ".mp4"), (12, ".mkv")])
def test_copied_frames_are_the_very_same_from_a_key_frame_on(tmp_path, frames, gop, suffix):
    painted = tmp_path / "painted.mp4"
    encode(painted, (TimedImage(number / 25, paint(number)) for number in range(40)), 25, Encoding(gop=gop))
    if suffix == ".mkv":
        painted = remuxed(painted, painted.with_suffix(suffix))

    cut = cut_video(str(painted), frames, None)

    assert cut.is_copied
    assert cut.frames.start == frames.start // gop * gop
    # Up to three frames more, which others are predicted from.
    assert frames.stop <= cut.frames.stop <= frames.stop + 3
    copied = ClipReader().read(cut_in_memory(cut), range(len(cut.frames)))
    assert np.array_equal(copied, ClipReader().read(painted, cut.frames))


def remuxed(source: Path, target: Path) -> Path:
    with av.open(str(source)) as video, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return target


@pytest.mark.parametrize("size", [(63, 128), (64, 127), (33, 35)])
def test_odd_sizes_and_folders_keep_their_frames(tmp_path, size):
    for number in range(9):
        Image.fromarray(paint(number)).resize(size[::-1]).save(tmp_path / f"{number:03d}.png")
    cut = cut_folder(str(tmp_path), range(2, 9), 25.0, SHARD_ENCODING)
    frames = ClipReader().read(cut_in_memory(cut), range(7)).astype(np.float32)
    original = np.stack([np.asarray(Image.open(tmp_path / f"{number:03d}.png")) for number in range(2, 9)])

    assert frames.shape == (7, *size, 3)
    assert 10 * np.log10(255**2 / np.square(frames - original).mean()) > 40


def test_rows_are_those_that_datasets_streams(copied):
    rows = datasets.load_dataset(
        "parquet", data_files=str(copied / "data/train-*.parquet"), split="train", streaming=True
    )
    table = datasets.load_dataset("parquet", data_files=str(copied / "data/train-*.parquet"), split="train")

    assert table.features == WINDOW_FEATURES
    first = next(iter(rows))
    assert first["video"]["path"] == "demo_train_000.mp4"
    assert first["num_frames"] == ClipReader().info(VideoBytes("first", first["video"]["bytes"])).num_frames
    assert sum(len(row["clips"]) for row in rows) == 14


def test_keyframes_share_a_row_where_their_clips_overlap(demo_dir):
    rows = load_action_dataset("ava", demo_dir, "train")

    def sizes(**options) -> list[int]:
        return [len(window.rows) for window in plan_windows(rows, **options)]

    assert sizes(clip_seconds=0.9) == [1] * 14
    assert sizes(clip_seconds=1.1, keyframes_per_row=3) == [3, 1, 3, 2, 3, 2]
    assert sizes(clip_seconds=1.1) == [4, 5, 5]
    for value in ({"clip_seconds": 0}, {"clip_seconds": float("nan")}, {"keyframes_per_row": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            sizes(**value)


@pytest.mark.parametrize("layout", ["ucf101_24", "jhmdb_21"])
def test_tubes_are_those_of_files(tmp_path, layout):
    write_demo_tubes(tmp_path / "data", layout, num_train_videos=3, num_validation_videos=1)
    assert write_shards(layout, tmp_path / "data", tmp_path / "shards") == []
    sampling = {"num_frames": 8, "frame_stride": 1, "num_labels": 21 if layout == "jhmdb_21" else 24}

    files = make_clips(load_action_dataset(layout, tmp_path / "data", "train"), **SAMPLING | sampling)
    stream = clips_of(tmp_path / "shards", **sampling)

    assert stream.has_tubes
    assert stream.clip_ids == files.clip_ids
    for clip, other in zip(stream, (files[index] for index in range(len(files))), strict=True):
        assert torch.equal(clip["boxes"], other["boxes"])
        assert torch.equal(clip["frame_numbers"], other["frame_numbers"])
        error = float((clip["frames"].float() - other["frames"].float()).square().mean())
        assert 10 * np.log10(255**2 / error) > 38
    assert stream.rows["clip_id"] == files.rows["clip_id"]
    assert stream.rows["tubes"] == files.rows["tubes"]


def test_clip_that_is_longer_than_planned_is_refused(copied):
    with pytest.raises(VideoReadError, match="needs more than the frames .* --clip_seconds"):
        names(clips_of(copied, frame_stride=12))


# Order and resuming


def loader(stream, num_workers: int, batch_size: int = 2, process=(0, 1)):
    part = stream.for_process(*process, batch_size=batch_size, is_training=True)
    return torch.utils.data.DataLoader(part, batch_size, num_workers=num_workers, collate_fn=names)


class Watched:
    """Shards that tell which rows are read."""

    def __init__(self, shards, fetched: list[int]):
        self.parts, self.name_of, self._shards, self._fetched = shards.parts, shards.name_of, shards, fetched

    def read_row(self, number: int):
        self._fetched.append(number)
        return self._shards.read_row(number)


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (7, 0)])
def test_resumed_epoch_gives_what_was_left_and_reads_nothing_else(copied, num_processes, num_workers):
    fetched = []
    for process in range(num_processes):
        stream = clips_of(copied, shuffle=True, seed=4)
        stream.shards = Watched(stream.shards, fetched)
        stream.set_epoch(2)
        whole = list(loader(stream, num_workers, process=(process, num_processes)))
        for num_batches in range(len(whole) + 1) if num_workers == 0 else (1, len(whole) // 2 + 1):
            stream.load_state_dict(stream.state_dict(num_batches))
            fetched.clear()
            resumed = list(loader(stream, num_workers, process=(process, num_processes)))

            assert resumed[num_batches:] == whole[num_batches:]
            assert resumed[:num_batches] == [[None, None]] * num_batches
            needed = {name for batch in whole[num_batches:] for name in batch}
            assert len(fetched) <= len(needed)
        stream.set_epoch(3)
        assert None not in sum(loader(stream, num_workers, process=(process, num_processes)), [])


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 0), (3, 2), (20, 0)])
def test_evaluation_gives_each_clip_once(copied, num_processes, num_workers):
    stream, seen = clips_of(copied), []
    for process in range(num_processes):
        part = stream.for_process(process, num_processes, batch_size=2)
        seen += names(torch.utils.data.DataLoader(part, batch_size=None, num_workers=num_workers))

    assert sorted(seen) == sorted(stream.clip_ids)


@pytest.mark.usefixtures("one_thread")
def test_training_is_that_on_files_and_goes_on_where_it_was_killed(demo_dir, copied, tmp_path):
    """Bit for bit: in the weights after ten updates, of seven in an epoch."""
    draws = {"transform": ClipTransform(36, 32, 0.5), "seed": 3}

    def train(clips, folder: str, resume: str | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
        trainer = tiny_trainer(demo_dir, tmp_path / folder, max_steps=10, save_strategy="steps", save_steps=4)
        trainer.train_dataset = clips
        trainer.train(resume_from_checkpoint=resume)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trainer.model.state_dict(), losses

    weights, losses = train(clips_of(copied, shuffle=True, **draws), "shards")
    resumed, _ = train(clips_of(copied, shuffle=True, **draws), "shards", str(tmp_path / "shards/checkpoint-4"))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)

    from_files, same_losses = train(InOrder(demo_dir, clips_of(copied, shuffle=True, **draws), draws), "files")
    assert losses == same_losses
    assert all(torch.equal(weights[name], from_files[name]) for name in weights)


class InOrder(torch.utils.data.IterableDataset):
    """Clips of files in the order of a stream of shards, whose frames it does not take."""

    def __init__(self, demo_dir: Path, stream, options):
        self.files = make_clips(load_action_dataset("ava", demo_dir, "train"), **SAMPLING, **options)
        self.stream = stream.for_process(0, 1, batch_size=2, is_training=True)

    def __len__(self) -> int:
        return len(self.stream)

    def set_epoch(self, epoch: int) -> None:
        self.files.set_epoch(epoch)
        self.stream.set_epoch(epoch)

    def __iter__(self):
        from classquery.data.clips import draw_of

        rows = {row["clip_id"]: row for row in self.files.rows}
        for name in names(self.stream):
            yield self.files.read(rows[name], name, 0, draw_of(name))


# Writing


def test_writing_goes_on_where_it_was_killed(demo_dir, copied, tmp_path, monkeypatch):
    cut, done = writing._cut, []

    def cut_or_die(job):
        done.append(job.window.name)
        if len(done) == 5:
            raise KeyboardInterrupt
        return cut(job)

    monkeypatch.setattr(writing, "_cut", cut_or_die)
    with pytest.raises(KeyboardInterrupt):
        write_shards("ava", demo_dir, tmp_path / "shards", encoding=None, **WRITING)
    assert not (tmp_path / "shards/shards.json").exists()
    with (tmp_path / "shards/shards.jsonl").open("a") as file:
        file.write('\n{"file": "data/train-')
    assert write_shards("ava", demo_dir, tmp_path / "shards", encoding=None, num_workers=0, **WRITING) == []

    # Eight windows in all, and one or two of the shard that was not finished.
    assert 8 + 1 <= len(done) <= 5 + 8
    assert contents(tmp_path / "shards") == contents(copied)
    with pytest.raises(ValueError, match="other options"):
        write_shards("ava", demo_dir, tmp_path / "shards", **WRITING)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for name in ("data", "index") for path in (folder / name).iterdir()]
    return {path.name: path.read_bytes() for path in [*files, folder / "shards.json"]}


def test_nothing_is_written_over_other_files(demo_dir, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(ValueError, match="something else than shards"):
        write_shards("ava", demo_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_broken_video_is_left_out_and_named(demo_dir, tmp_path):
    shutil.copytree(demo_dir, tmp_path / "data")
    movie = tmp_path / "data/videos/demo_train_001.mp4"
    movie.write_bytes(movie.read_bytes()[:1000])

    lost = write_shards("ava", tmp_path / "data", tmp_path / "shards", encoding=None, **WRITING)

    assert [text.partition(":")[0] for text in lost] == ["demo_train_001"] * 2
    assert len(clips_of(tmp_path / "shards")) == 9


# The command


def test_command_writes_shards_and_says_what_is_wrong(demo_dir, tmp_path, capsys):
    arguments = ["shard", "--dataset", "ava", "--data_dir", str(demo_dir), "--output_dir", str(tmp_path / "shards")]

    assert main([*arguments, "--copy", "--shard_size", "60kB", "--clip_seconds", "1.1", "--license", "mit"]) == 0
    assert len(load_action_dataset("shards", tmp_path / "shards", "train").files) > 1
    assert "license: mit" in (tmp_path / "shards/README.md").read_text()
    assert main([*arguments, "--crf", "20"]) == 1
    assert "other options" in capsys.readouterr().out
    assert main([*arguments, "--push_to_hub", "tester/demo"]) == 1
    assert "give --license" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--shard_size", "many"])
    assert "'many' is no size such as 500MB" in capsys.readouterr().err


# On the Hub


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server = HubStandIn()
    yield server
    server.shutdown()
    server.server_close()


def test_shared_shards_stream_back_after_a_transfer_that_broke(copied, hub, tmp_path):
    api = huggingface_hub.HfApi(endpoint=hub.url, token=TOKEN)
    with pytest.raises(ShardUploadError, match="give --license"):
        push_action_dataset(copied, "tester/shards", api=api)
    hub.failures["commit"] = 500
    with pytest.raises(ShardUploadError, match="try again"):
        push_action_dataset(copied, "tester/shards", license_id="mit", api=api)
    assert "shards.json" not in hub.files("tester/shards", "datasets")

    push_action_dataset(copied, "tester/shards", license_id="mit", api=api)

    files = hub.files("tester/shards", "datasets")
    for path in copied.glob("*/*.parquet"):
        assert files[path.relative_to(copied).as_posix()] == path.read_bytes()
    assert "hf://datasets/tester/shards" in files["README.md"].decode()
    hub.requests.clear()
    push_action_dataset(copied, "tester/shards", license_id="mit", api=api)
    assert len([path for _, path in hub.requests if "commit" in path]) == 1

    store = ShardStore("hf://datasets/tester/shards", storage_options={"endpoint": hub.url, "token": TOKEN})
    assert_same_clips(make_clips(Shards(store, "train"), **SAMPLING), clips_of(copied))


# Over HTTP, and what may go wrong


def test_clips_over_http_are_the_same_and_only_what_is_needed_is_read(copied):
    with HttpStore(copied) as server:
        stream = clips_of(server.url)
        assert_same_clips(stream, clips_of(copied))
        assert server.num_bytes < 1.2 * sum(path.stat().st_size for path in copied.glob("*/train*.parquet"))
        server.num_bytes = 0
        next(iter(clips_of(server.url, shuffle=True)))
        sizes = [int(size) for size in stream.shards.parts(stream.clips)[0].num_bytes]
        # The index, the ends of at most three shards, and the rows that are fetched ahead.
        assert server.num_bytes < sum(sorted(sizes)[-5:]) + 3 * 15_000 + 30_000


@pytest.mark.parametrize("failure", ["half", "error", "whole"])
def test_request_that_fails_is_made_again(copied, failure):
    with HttpStore(copied) as server:
        stream = clips_of(server.url)
        server.failures += [failure] * 2
        assert names(stream) == stream.clip_ids


@pytest.mark.parametrize(("failure", "message"), [("stall", "no answer within 0.3 s"), ("half", ""), ("error", "503")])
def test_store_that_fails_for_good_is_one_message_with_shard_and_row(copied, failure, message):
    with HttpStore(copied) as server:
        store = ShardStore(server.url, timeout_seconds=0.3, max_attempts=2)
        stream = make_clips(Shards(store, "train"), **SAMPLING)
        server.failures += [failure] * 20
        with pytest.raises(VideoReadError, match=rf"cannot read row 0 of {server.url}/data/train-00000.*{message}"):
            next(iter(stream))
        assert server.num_requests <= 20


def damaged(copied: Path, folder: Path, damage) -> Path:
    shutil.copytree(copied, folder)
    path = folder / "data/train-00001.parquet"
    path.write_bytes(damage(path.read_bytes()))
    return folder


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def other_schema(content: bytes) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["something else"]}), buffer)
    return content[: len(content) - len(buffer.getvalue())] + buffer.getvalue()


DAMAGES = {
    "cut off": (lambda content: content[: len(content) // 2], "bytes came"),
    "a byte": (flip_a_byte, "damaged"),
    "another file": (other_schema, "it is damaged or another file"),
    "empty": (lambda content: b"", "bytes came"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_named_or_skipped_and_evaluation_substitutes_nothing(copied, tmp_path, damage):
    change, message = DAMAGES[damage]
    folder = damaged(copied, tmp_path / "damaged", change)
    lost = set(clips_of(copied).clip_ids) - set(names(clips_of(folder, on_error="skip")))

    with pytest.raises(VideoReadError, match=rf"row \d of .*train-00001.parquet: .*{message}"):
        names(clips_of(folder))
    assert len(lost) in (3, 5)
    training = clips_of(folder, on_error="skip", shuffle=True).for_process(0, 1, batch_size=2, is_training=True)
    clips = list(training)
    assert len(clips) == 14
    skipped = {text.partition(":")[0] for clip in clips for text in clip.get("skipped", ())}
    assert skipped == lost
    assert lost.isdisjoint(names(clips))
    # Others keep their place, so that a run that is resumed finds its own.
    sound = names(clips_of(copied, shuffle=True).for_process(0, 1, batch_size=2, is_training=True))
    assert all(name == other for name, other in zip(names(clips), sound, strict=True) if other not in lost)


def test_video_that_cannot_be_decoded_is_named(copied, tmp_path):
    shutil.copytree(copied, tmp_path / "shards")
    path = tmp_path / "shards/data/train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["video"]["bytes"] = b"no video" * 1000
    writer = pq.ParquetWriter(path, WINDOW_FEATURES.arrow_schema)
    for row in rows:
        writer.write_table(pa.Table.from_pylist([row], schema=WINDOW_FEATURES.arrow_schema))
    writer.close()
    index = json.loads((tmp_path / "shards/shards.json").read_text())
    index["splits"]["train"]["shards"][0]["num_bytes"] = path.stat().st_size
    (tmp_path / "shards/shards.json").write_text(json.dumps(index))

    with pytest.raises(VideoReadError, match=r"\.mp4 in row 1 of .*train-00000.parquet: it is not a video"):
        names(clips_of(tmp_path / "shards"))


def test_index_that_is_missing_or_damaged_says_what_to_do(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shards\.json"):
        clips_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="no split test, but train, validation"):
        clips_of(copied, "test")
    shutil.copytree(copied, tmp_path / "shards")
    for name, content in (
        ("index/train.parquet", b"PAR1"),
        ("shards.json", b"[]"),
        ("shards.json", b'{"version": 9}'),
    ):
        (tmp_path / "shards" / name).write_bytes(content)
        with pytest.raises(AnnotationError, match=f"{name}: it is no index of shards"):
            clips_of(tmp_path / "shards")
