"""Detection over whole videos: which frames the model sees, what is reported, and what happens to bad files."""

import json
import logging
import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.clip_reader import ClipReader, Frame, VideoReadError
from classquery.data.clips import clip_seconds
from classquery.engine.detection import (
    ActorDetection,
    KeyframeDetections,
    assemble_clips,
    detect_video,
    write_detections,
)


NAMES = ("stand", "walk", "sit", "hand wave", "carry/hold (an object)")
EVERYTHING = {"threshold": 0.0, "actor_threshold": 0.0}
CONSTANT_RATE = np.arange(50) / 20
VARIABLE_RATE = np.cumsum([0, *[0.04, 0.1, 0.033, 0.25] * 12])


def write_video(path: Path, seconds: Sequence[float], size: tuple[int, int] = (64, 48)) -> str:
    """Write frames of (width, height) at some times, each of another colour and with a gradient."""
    width, height = size
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "g": "10", "crf": "10"})
        # 4:4:4 because 4:2:0 has no odd sizes.
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(seconds):
            rows, columns = np.mgrid[:height, :width]
            image = np.stack((rows + 3 * index, 2 * columns, rows + columns + 5 * index), axis=-1) % 256
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def cut(path: str) -> str:
    """Cut a video in its middle."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    return path


def damage(path: str) -> str:
    """Overwrite the start of a key frame in the middle of a video."""
    with av.open(path) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    content = bytearray(Path(path).read_bytes())
    position = positions[len(positions) // 2]
    content[position : position + 8] = b"\xff" * 8
    Path(path).write_bytes(content)
    return path


def make_model(**overrides) -> ClassQueryForVideoActionDetection:
    """A small model whose scores differ from class to class and from actor to actor."""
    torch.manual_seed(0)
    config = tiny_config(frame_stride=3, id2label=dict(enumerate(NAMES)), class_readout="per_class", **overrides)
    model = ClassQueryForVideoActionDetection(config)
    torch.nn.init.normal_(model.class_readout)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ClassQueryForVideoActionDetection:
    return make_model()


@pytest.fixture(scope="module")
def processor() -> ClassQueryVideoProcessor:
    return ClassQueryVideoProcessor(size={"shortest_edge": 32})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "constant.mp4", CONSTANT_RATE)


@pytest.fixture(scope="module")
def variable_path(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "variable.mp4", VARIABLE_RATE, size=(75, 49))


def read_clip(path: str, keyframe_seconds: float, config) -> np.ndarray:
    """Read a clip as the data sets do."""
    reader = ClipReader()
    seconds = clip_seconds(
        keyframe_seconds,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
    )
    return reader.read(path, reader.frame_indices_at(path, seconds))


# Which frames


@pytest.mark.parametrize("keyframes_per_second", [0.4, 1, 3])
def test_model_sees_the_clips_that_clip_reader_and_processor_give(
    keyframes_per_second, model, processor, path, variable_path
):
    for video in (path, variable_path):
        seen = []
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.extend(kwargs["pixel_values"]), with_kwargs=True
        )
        results = list(detect_video(video, model, processor, keyframes_per_second=keyframes_per_second))
        hook.remove()

        assert len(seen) == len(results) > 0
        for keyframe, pixel_values in enumerate(seen):
            clip = read_clip(video, keyframe / keyframes_per_second, model.config)
            assert torch.equal(pixel_values, processor(clip)["pixel_values"][0])


def test_keyframes_are_the_frames_nearest_to_regular_times(model, processor, variable_path):
    results = list(detect_video(variable_path, model, processor, keyframes_per_second=2))

    wanted = np.arange(0, VARIABLE_RATE[-1] + 1e-6, 0.5)
    nearest = [int(np.abs(VARIABLE_RATE - seconds).argmin()) for seconds in wanted]
    assert [result.frame_index for result in results] == nearest
    assert [result.seconds for result in results] == pytest.approx(VARIABLE_RATE[nearest], abs=1e-3)


def test_last_frame_is_a_keyframe_if_its_time_is_regular(model, processor, tmp_path):
    path = write_video(tmp_path / "video.mp4", np.arange(31) / 10)

    results = list(detect_video(path, model, processor))

    assert [result.frame_index for result in results] == [0, 10, 20, 30]


def test_no_frame_is_a_keyframe_twice(model, processor, path):
    results = list(detect_video(path, model, processor, keyframes_per_second=50, batch_size=16))

    assert [result.frame_index for result in results] == list(range(len(CONSTANT_RATE)))


@pytest.mark.parametrize(
    ("seconds", "size"), [(CONSTANT_RATE[:1], (64, 48)), (CONSTANT_RATE[:30], (33, 71))], ids=["one-frame", "portrait"]
)
def test_detection_takes_any_video(seconds, size, model, processor, tmp_path):
    path = write_video(tmp_path / "video.mp4", seconds, size)

    results = list(detect_video(path, model, processor, **EVERYTHING))

    assert [result.seconds for result in results] == list(range(int(seconds[-1]) + 1))
    assert all(len(result.actors) == model.config.num_queries for result in results)


def stream(num_frames: int, missing: Sequence[int] = ()) -> Iterator[Frame]:
    for index in range(num_frames):
        if index not in missing:
            yield Frame(index, index / 10, np.array([index]))


def clip_indices(num_frames: int) -> np.ndarray:
    """Clips of 5 frames with stride 4 around every sixth frame."""
    keyframes = np.arange(0, num_frames, 6)
    return (keyframes[:, None] + 4 * np.arange(-2, 3)).clip(0, num_frames - 1)


def largest_number_of_frames_alive(num_frames: int) -> int:
    alive, counts = set(), []

    def prepare(image: np.ndarray) -> torch.Tensor:
        frame = torch.from_numpy(image)
        alive.add(id(frame))
        weakref.finalize(frame, alive.remove, id(frame))
        counts.append(len(alive))
        return frame

    for _ in assemble_clips(stream(num_frames), clip_indices(num_frames), num_frames, prepare):
        pass
    return max(counts)


def test_number_of_frames_in_memory_does_not_grow_with_the_video():
    assert largest_number_of_frames_alive(2000) == largest_number_of_frames_alive(100) <= 17


@pytest.mark.parametrize(("missing", "expected"), [([10], [4, 8, 12, 16, 20]), ([8], [4, 4, 12, 16, 20])])
def test_frame_that_the_decoder_skips_is_replaced_by_the_nearest_of_its_clip(missing, expected):
    clips = assemble_clips(stream(30, missing), np.array([[4, 8, 12, 16, 20]]), 30, torch.from_numpy)

    assert [clip.frames.flatten().tolist() for clip in clips] == [expected]


def test_last_clip_before_damage_repeats_its_last_frame():
    clips = list(assemble_clips(stream(20), clip_indices(60), 60, torch.from_numpy))

    assert [clip.frame_index for clip in clips] == [0, 6, 12, 18]
    assert clips[-1].frames.flatten().tolist() == [10, 14, 18, 18, 18]


def test_keyframe_that_the_decoder_skips_is_left_out():
    clips = assemble_clips(stream(60, missing=range(10, 20)), clip_indices(60), 60, torch.from_numpy)

    assert [clip.frame_index for clip in clips] == [0, 6, 24, 30, 36, 42, 48, 54]


# What is reported


@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_detections_equal_those_of_a_direct_call_of_the_model(output_frames, processor, variable_path):
    model = make_model(output_frames=output_frames)
    results = list(detect_video(variable_path, model, processor, batch_size=3, **EVERYTHING))

    frame = model.config.keyframe_index if output_frames == "all" else 0
    for keyframe, result in enumerate(results):
        with torch.no_grad():
            outputs = model(**processor(read_clip(variable_path, keyframe, model.config)))
        expected = processor.post_process_action_detection(outputs, target_sizes=[(49, 75)])[0][frame]
        order = expected["boxes"].clamp(min=0).clamp(max=torch.tensor([75, 49, 75, 49]))[:, ::2].sum(-1).argsort()
        for actor, query in zip(result.actors, order.tolist(), strict=True):
            # Batches add in another order than single clips: 1e-4 pixels.
            torch.testing.assert_close(
                torch.tensor(actor.box),
                expected["boxes"][query].clamp(min=0).clamp(max=torch.tensor([75.0, 49, 75, 49])),
                rtol=0,
                atol=1e-3,
            )
            assert actor.actor_score == pytest.approx(expected["actor_scores"][query].item(), abs=1e-5)
            scores = dict(zip(NAMES, expected["scores"][query].tolist(), strict=True))
            assert dict(actor.actions) == pytest.approx(scores, abs=1e-5)


def test_actions_come_highest_first_and_actors_from_left_to_right(model, processor, path):
    for result in detect_video(path, model, processor, **EVERYTHING):
        centers = [actor.box[0] + actor.box[2] for actor in result.actors]
        assert centers == sorted(centers)
        for actor in result.actors:
            scores = [score for _, score in actor.actions]
            assert scores == sorted(scores, reverse=True)


def test_thresholds_leave_out_actions_and_actors(model, processor, path):
    everything = next(detect_video(path, model, processor, **EVERYTHING))
    actor_threshold = sorted(actor.actor_score for actor in everything.actors)[1]
    confident = [actor for actor in everything.actors if actor.actor_score >= actor_threshold]
    # The best score of all that remains: only one of the two actors reaches it, with one action.
    best = max(confident, key=lambda actor: actor.actions[0][1])
    threshold = best.actions[0][1]

    selected = next(detect_video(path, model, processor, threshold=threshold, actor_threshold=actor_threshold))
    all_actions = next(detect_video(path, model, processor, threshold=0, actor_threshold=actor_threshold))

    assert selected.actors == [ActorDetection(best.box, best.actor_score, best.actions[:1])]
    assert all_actions.actors == confident
    assert len(confident) == len(everything.actors) - 1 == 2


def test_keyframe_without_actors_is_reported_too(model, processor, path):
    results = list(detect_video(path, model, processor, actor_threshold=1.1))

    assert [result.actors for result in results] == [[], [], []]


def test_model_runs_in_evaluation_mode_without_gradients_and_in_its_own_precision(processor, path):
    model = make_model().to(torch.bfloat16).train()

    results = list(detect_video(path, model, processor, **EVERYTHING))

    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.isfinite([actor.box for result in results for actor in result.actors]).all()


# Attention


@pytest.mark.parametrize(("class_attention_heads", "num_heads"), [("released", 2), ("interleaved", 4)])
@pytest.mark.parametrize("output_frames", ["keyframe", "all"])
def test_attention_is_the_mean_over_the_heads_that_see_content(
    output_frames, class_attention_heads, num_heads, processor, path
):
    model = make_model(output_frames=output_frames, class_attention_heads=class_attention_heads)

    first = next(detect_video(path, model, processor, attention_label="sit", **EVERYTHING))

    with torch.no_grad():
        outputs = model(**processor(read_clip(path, 0.0, model.config)), output_attentions=True)
    frame = model.config.keyframe_index if output_frames == "all" else 0
    of_all_queries = outputs.class_attentions[-1][0, frame, :, NAMES.index("sit"), :num_heads].mean(1).numpy()
    queries = outputs.pred_boxes[0, frame, :, 0].argsort().tolist()
    for actor, query in zip(first.actors, queries, strict=True):
        np.testing.assert_allclose(actor.attention, of_all_queries[query], atol=1e-6)
        assert actor.attention.sum() == pytest.approx(1, abs=1e-5)


def test_released_heads_that_are_left_out_look_at_the_same_place_for_all_classes(model, processor, path):
    with torch.no_grad():
        outputs = model(**processor(read_clip(path, 0.0, model.config)), output_attentions=True)

    content, position = outputs.class_attentions[-1].chunk(2, dim=4)
    torch.testing.assert_close(position, position[:, :, :, :1].expand_as(position))
    assert (content - content[:, :, :, :1]).abs().max() > 1e-4


def test_attention_is_left_out_unless_asked_for(model, processor, path):
    assert all(actor.attention is None for actor in next(detect_video(path, model, processor, **EVERYTHING)).actors)


def test_unknown_class_raises_with_the_closest_names(model, processor, path):
    with pytest.raises(ValueError, match=r"no class 'hand-wave'; the closest names are \['hand wave', "):
        detect_video(path, model, processor, attention_label="hand-wave")


# Bad input


@pytest.mark.parametrize(
    "argument", [{"keyframes_per_second": 0}, {"keyframes_per_second": np.inf}, {"batch_size": 0}]
)
def test_numbers_out_of_range_raise(argument, model, processor, path):
    with pytest.raises(ValueError, match="must be positive"):
        detect_video(path, model, processor, **argument)


@pytest.mark.parametrize("content", [None, b"", b"not a video"])
def test_unreadable_video_raises_at_the_call(content, model, processor, tmp_path):
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(VideoReadError, match="cannot read"):
        detect_video(path, model, processor)


@pytest.mark.parametrize("spoil", [cut, damage])
def test_results_end_with_one_warning_where_the_video_is_damaged(spoil, model, processor, tmp_path, caplog):
    whole = write_video(tmp_path / "whole.mp4", np.arange(100) / 20)
    spoiled = spoil(write_video(tmp_path / "spoiled.mp4", np.arange(100) / 20))

    results = list(detect_video(spoiled, model, processor, **EVERYTHING))

    expected = list(detect_video(whole, model, processor, **EVERYTHING))
    assert 2 <= len(results) < len(expected) == 5
    assert results[0].to_dict() == expected[0].to_dict()
    assert [result.frame_index for result in results] == [20 * second for second in range(len(results))]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "spoiled.mp4" in caplog.text


# JSON


ACTOR = ActorDetection((1.004, 2, 30, 47.5), 0.91239, [("sit", 0.8), ("walk", 0.31)], np.ones((2, 2)) / 4)


def test_json_holds_the_video_and_its_detections(path, tmp_path):
    keyframes = [KeyframeDetections(0, 0.0, [ACTOR]), KeyframeDetections(20, 1.0, [])]

    write_detections(tmp_path / "detections.json", ClipReader().info(path), iter(keyframes))

    assert json.loads((tmp_path / "detections.json").read_text()) == {
        "video": path,
        "frames_per_second": 20.0,
        "num_frames": 50,
        "height": 48,
        "width": 64,
        "keyframes": [
            {
                "frame_index": 0,
                "seconds": 0.0,
                "actors": [
                    {
                        "box": [1.0, 2, 30, 47.5],
                        "actor_score": 0.9124,
                        "actions": [{"label": "sit", "score": 0.8}, {"label": "walk", "score": 0.31}],
                    }
                ],
            },
            {"frame_index": 20, "seconds": 1.0, "actors": []},
        ],
    }


@pytest.mark.parametrize("moment", ["detecting", "writing"])
def test_failure_keeps_the_json_that_was_there(moment, path, tmp_path):
    output = tmp_path / "detections.json"
    output.write_text("good")

    def keyframes():
        yield KeyframeDetections(0, 0.0, [ACTOR])
        if moment == "detecting":
            raise VideoReadError("damaged")
        yield KeyframeDetections(1, 0.1, [ActorDetection(ACTOR.box, 0.9, [(object(), 0.5)])])

    with pytest.raises((VideoReadError, TypeError)):
        write_detections(output, ClipReader().info(path), keyframes())

    assert [file.read_text() for file in tmp_path.iterdir()] == ["good"]
