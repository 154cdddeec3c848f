"""Detection over whole videos: which frames the model sees, what is reported, and what happens to bad files."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.clips import clip_seconds, tile_starts
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.detection.detection import detect
from classquery.engine.detection.results import ActorDetection, FrameDetections


NAMES = ("stand", "walk", "sit", "hand wave", "carry/hold (an object)")
EVERYTHING = {"threshold": 0.0, "actor_threshold": 0.0}
CONSTANT_RATE = np.arange(50) / 20
VARIABLE_RATE = np.cumsum([0, *[0.04, 0.1, 0.033, 0.25] * 12])


def write_video(
    path: Path, seconds: Sequence[float], size: tuple[int, int] = (64, 48), *, ticks_per_second: int = 1000
) -> str:
    """Write frames of (width, height) at some times, each of another colour and with a gradient."""
    width, height = size
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "g": "10", "crf": "10"})
        # 4:4:4 because 4:2:0 has no odd sizes.
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = Fraction(1, ticks_per_second)
        for index, time in enumerate(seconds):
            rows, columns = np.mgrid[:height, :width]
            image = np.stack((rows + 3 * index, 2 * columns, rows + columns + 5 * index), axis=-1) % 256
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(ticks_per_second * time), Fraction(1, ticks_per_second)
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
    values = {"frame_stride": 3, "id2label": dict(enumerate(NAMES)), "class_readout": "per_class"} | overrides
    config = tiny_config(**values)
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
        results = list(detect(video, model, processor, keyframes_per_second=keyframes_per_second))
        hook.remove()

        assert len(seen) == len(results) > 0
        for keyframe, pixel_values in enumerate(seen):
            clip = read_clip(video, keyframe / keyframes_per_second, model.config)
            assert torch.equal(pixel_values, processor(clip)["pixel_values"][0])


def test_keyframes_are_the_frames_nearest_to_regular_times(model, processor, variable_path):
    results = list(detect(variable_path, model, processor, keyframes_per_second=2))

    wanted = np.arange(0, VARIABLE_RATE[-1] + 1e-6, 0.5)
    nearest = [int(np.abs(VARIABLE_RATE - seconds).argmin()) for seconds in wanted]
    assert [result.frame_index for result in results] == nearest
    assert [result.seconds for result in results] == pytest.approx(VARIABLE_RATE[nearest], abs=1e-3)


def test_last_frame_is_a_keyframe_if_its_time_is_regular(model, processor, tmp_path):
    path = write_video(tmp_path / "video.mp4", np.arange(31) / 10)

    results = list(detect(path, model, processor))

    assert [result.frame_index for result in results] == [0, 10, 20, 30]


def test_no_frame_is_a_keyframe_twice(model, processor, path):
    results = list(detect(path, model, processor, keyframes_per_second=50, batch_size=16))

    assert [result.frame_index for result in results] == list(range(len(CONSTANT_RATE)))


@pytest.mark.parametrize(
    ("seconds", "size"), [(CONSTANT_RATE[:1], (64, 48)), (CONSTANT_RATE[:30], (33, 71))], ids=["one-frame", "portrait"]
)
def test_detection_takes_any_video(seconds, size, model, processor, tmp_path):
    path = write_video(tmp_path / "video.mp4", seconds, size)

    results = list(detect(path, model, processor, **EVERYTHING))

    assert [result.seconds for result in results] == list(range(int(seconds[-1]) + 1))
    assert all(len(result.actors) == model.config.num_queries for result in results)


# What is reported


def assert_same_detections(result: FrameDetections, expected: dict[str, torch.Tensor]) -> None:
    """Compare a result with what the processor returns for a frame of 75x49 pixels."""
    edges = torch.tensor([75.0, 49, 75, 49])
    boxes = expected["boxes"].clamp(min=0).minimum(edges)
    for actor, query in zip(result.actors, boxes[:, ::2].sum(-1).argsort().tolist(), strict=True):
        # Batches add in another order than single clips: 1e-4 pixels.
        torch.testing.assert_close(torch.tensor(actor.box), boxes[query], rtol=0, atol=1e-3)
        assert actor.actor_score == pytest.approx(expected["actor_scores"][query].item(), abs=1e-5)
        scores = dict(zip(NAMES, expected["scores"][query].tolist(), strict=True))
        assert dict(actor.actions) == pytest.approx(scores, abs=1e-5)


def test_detections_equal_those_of_a_direct_call_of_the_model(model, processor, variable_path):
    results = list(detect(variable_path, model, processor, batch_size=3, **EVERYTHING))

    for keyframe, result in enumerate(results):
        with torch.no_grad():
            outputs = model(**processor(read_clip(variable_path, keyframe, model.config)))
        assert_same_detections(result, processor.post_process_action_detection(outputs, target_sizes=[(49, 75)])[0][0])


def test_detections_in_all_frames_equal_a_direct_call_on_tiles(processor, variable_path):
    model = make_model(output_frames="all", frame_stride=1)

    results = list(detect(variable_path, model, processor, batch_size=3, **EVERYTHING))

    frames = ClipReader().read(variable_path, range(len(VARIABLE_RATE)))
    assert [result.frame_index for result in results] == list(range(len(frames)))
    for start in tile_starts(len(frames), 4):
        indices = np.arange(start, start + 4).clip(0, len(frames) - 1)
        with torch.no_grad():
            outputs = model(**processor(frames[indices]))
        detections = processor.post_process_action_detection(outputs, target_sizes=[(49, 75)])[0]
        for position, detections_in_frame in enumerate(detections, start):
            if 0 <= position < len(frames):
                assert_same_detections(results[position], detections_in_frame)


def test_actions_come_highest_first_and_actors_from_left_to_right(model, processor, path):
    for result in detect(path, model, processor, **EVERYTHING):
        centers = [actor.box[0] + actor.box[2] for actor in result.actors]
        assert centers == sorted(centers)
        for actor in result.actors:
            scores = [score for _, score in actor.actions]
            assert scores == sorted(scores, reverse=True)


def test_thresholds_leave_out_actions_and_actors(model, processor, path):
    everything = next(detect(path, model, processor, **EVERYTHING))
    actor_threshold = sorted(actor.actor_score for actor in everything.actors)[1]
    confident = [actor for actor in everything.actors if actor.actor_score >= actor_threshold]
    # The best score of all that remains: only one of the two actors reaches it, with one action.
    best = max(confident, key=lambda actor: actor.actions[0][1])
    threshold = best.actions[0][1]

    selected = next(detect(path, model, processor, threshold=threshold, actor_threshold=actor_threshold))
    all_actions = next(detect(path, model, processor, threshold=0, actor_threshold=actor_threshold))

    assert selected.actors == [ActorDetection(best.box, best.actor_score, best.actions[:1])]
    assert all_actions.actors == confident
    assert len(confident) == len(everything.actors) - 1 == 2


def test_keyframe_without_actors_is_reported_too(model, processor, path):
    results = list(detect(path, model, processor, actor_threshold=1.1))

    assert [result.actors for result in results] == [[], [], []]


def test_model_runs_in_evaluation_mode_without_gradients_and_in_its_own_precision(processor, path):
    model = make_model().to(torch.bfloat16).train()

    results = list(detect(path, model, processor, **EVERYTHING))

    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.isfinite([actor.box for result in results for actor in result.actors]).all()


def test_thresholds_of_the_processor_count_unless_others_are_given(model, path, tmp_path):
    processor = ClassQueryVideoProcessor(
        size={"shortest_edge": 32}, score_threshold=1.0, class_thresholds={"sit": 0.0}, actor_threshold=0.0
    )
    processor.save_pretrained(tmp_path)
    processor = ClassQueryVideoProcessor.from_pretrained(tmp_path)

    stored = next(detect(path, model, processor))
    given = next(detect(path, model, processor, threshold=0.0, class_thresholds={"sit": 1.1, "walk": 1.1}))

    assert stored.labels == [["sit"]] * 3
    assert {label for labels in given.labels for label in labels} == set(NAMES) - {"sit", "walk"}


def test_classes_and_top_k_choose_among_the_actions(model, processor, path):
    everything = next(detect(path, model, processor, **EVERYTHING))

    chosen = next(detect(path, model, processor, classes=["sit", "walk"], **EVERYTHING))
    best = next(detect(path, model, processor, top_k=2, **EVERYTHING))

    of_two = [[action for action in actor.actions if action[0] in ("sit", "walk")] for actor in everything.actors]
    assert [actor.actions for actor in chosen.actors] == of_two
    assert [actor.actions for actor in best.actors] == [actor.actions[:2] for actor in everything.actors]


@pytest.mark.parametrize("option", ["classes", "attention", "class_thresholds"])
def test_unknown_class_raises_with_the_closest_names(option, model, processor, path):
    value = {"hand-wave": 0.5} if option == "class_thresholds" else ["hand-wave"]

    with pytest.raises(ValueError, match=r"no class 'hand-wave'; the closest names are \['hand wave'"):
        detect(path, model, processor, **{option: value})


def test_keyframe_stride_counts_frames(model, processor, path):
    results = detect(path, model, processor, keyframe_stride=7)

    assert [result.frame_index for result in results] == list(range(0, len(CONSTANT_RATE), 7))


def test_rate_and_stride_together_raise(model, processor, path):
    with pytest.raises(ValueError, match="not both"):
        detect(path, model, processor, keyframe_stride=2, keyframes_per_second=1)


def test_model_without_its_processor_raises(model, path):
    with pytest.raises(ValueError, match="needs the processor"):
        detect(path, model)


def test_results_are_arrays_and_tables(model, processor, path):
    result = next(detect(path, model, processor, top_k=2, **EVERYTHING))

    assert result.boxes.shape == (3, 4)
    assert result.actor_scores.shape == (3,)
    assert [len(labels) for labels in result.labels] == [len(scores) for scores in result.scores] == [2, 2, 2]
    table = result.to_dataframe()
    assert list(table["label"]) == [label for labels in result.labels for label in labels]
    assert list(table["score"]) == pytest.approx([score for scores in result.scores for score in scores], abs=1e-4)
    assert table[["x_min", "y_min", "x_max", "y_max"]].to_numpy()[::2] == pytest.approx(result.boxes, abs=0.01)
    assert set(table["video"]) == {path}


def test_result_without_actors_is_an_empty_table():
    result = FrameDetections(0, 0.0, [])

    assert result.boxes.shape == (0, 4)
    assert len(result.to_dataframe()) == 0
    assert "label" in result.to_dataframe()


def test_supervision_gets_one_detection_per_actor(model, processor, path):
    pytest.importorskip("supervision")
    result = next(detect(path, model, processor, **EVERYTHING))

    detections = result.to_supervision()

    assert detections.xyxy == pytest.approx(result.boxes)
    assert list(detections["class_name"]) == [NAMES[index] for index in detections.class_id]
    assert list(detections["class_name"]) == [labels[0] for labels in result.labels]
    assert detections[:1]["labels"][0] == result.labels[0]


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    convert = {"supervision": FrameDetections.to_supervision, "pandas": FrameDetections.to_dataframe}[package]

    with pytest.raises(ImportError, match=f"pip install {package}"):
        convert(FrameDetections(0, 0.0, []))


# Attention


@pytest.mark.parametrize(("class_attention_heads", "num_heads"), [("released", 2), ("interleaved", 4)])
def test_attention_is_the_mean_over_layers_and_the_heads_that_see_content(
    class_attention_heads, num_heads, processor, path
):
    model = make_model(class_attention_heads=class_attention_heads)

    first = next(detect(path, model, processor, attention=["sit", "walk"], **EVERYTHING))

    with torch.no_grad():
        outputs = model(**processor(read_clip(path, 0.0, model.config)), output_attentions=True)
    queries = outputs.pred_boxes[0, 0, :, 0].argsort().tolist()
    for label in ("sit", "walk"):
        of_layers = torch.stack(outputs.class_attentions)[:, 0, 0, :, NAMES.index(label), :num_heads]
        of_all_queries = of_layers.mean((0, 2)).numpy()
        for actor, query in zip(first.actors, queries, strict=True):
            np.testing.assert_allclose(actor.attentions[label], of_all_queries[query], atol=1e-6)
            assert actor.attentions[label].sum() == pytest.approx(1, abs=1e-5)


def test_attention_in_all_frames_is_that_of_each_frame(processor, path):
    model = make_model(output_frames="all", frame_stride=1)
    results = list(itertools.islice(detect(path, model, processor, attention="sit", batch_size=2, **EVERYTHING), 8))

    with torch.no_grad():
        start = tile_starts(len(CONSTANT_RATE), 4)[1]
        clip = ClipReader().read(path, range(start, start + 4))
        outputs = model(**processor(clip), output_attentions=True)
    attention = torch.stack(outputs.class_attentions)[:, 0, :, :, NAMES.index("sit"), :2].mean((0, 3)).numpy()
    for frame in range(4):
        order = outputs.pred_boxes[0, frame, :, 0].argsort().tolist()
        reported = [actor.attentions["sit"] for actor in results[start + frame].actors]
        np.testing.assert_allclose(reported, attention[frame, order], atol=1e-6)


def test_released_heads_that_are_left_out_look_at_the_same_place_for_all_classes(model, processor, path):
    with torch.no_grad():
        outputs = model(**processor(read_clip(path, 0.0, model.config)), output_attentions=True)

    content, position = outputs.class_attentions[-1].chunk(2, dim=4)
    torch.testing.assert_close(position, position[:, :, :, :1].expand_as(position))
    assert (content - content[:, :, :, :1]).abs().max() > 1e-4


def test_attention_is_left_out_unless_asked_for(model, processor, path):
    assert all(actor.attentions == {} for actor in next(detect(path, model, processor, **EVERYTHING)).actors)


# Bad input


@pytest.mark.parametrize(
    "argument",
    [
        {"keyframes_per_second": 0},
        {"keyframes_per_second": np.inf},
        {"keyframe_stride": 0},
        {"batch_size": 0},
        {"top_k": 0},
        {"timeout_seconds": 0},
        {"threshold": np.nan},
        {"class_thresholds": {"stand": np.nan}},
    ],
)
def test_numbers_out_of_range_raise(argument, model, processor, path):
    with pytest.raises(ValueError, match="must be positive|at least 1|more than 0|a threshold is NaN"):
        detect(path, model, processor, **argument)


@pytest.mark.parametrize("content", [None, b"", b"not a video"])
def test_unreadable_video_raises_at_the_call(content, model, processor, tmp_path):
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(VideoReadError, match="cannot read"):
        detect(path, model, processor)


def test_sound_without_pictures_raises_at_the_call(model, processor, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())

    with pytest.raises(VideoReadError, match="no video stream"):
        detect(path, model, processor)


def test_large_frames_are_reduced_as_they_come(model, processor, tmp_path):
    path = write_video(tmp_path / "4k.mp4", np.arange(3) / 20, (3840, 2160))

    (result,) = detect(path, model, processor, **EVERYTHING)

    assert result.size == (2160, 3840)
    assert (result.boxes <= [3840, 2160, 3840, 2160]).all()


def test_results_draw_and_save_themselves(model, processor, path, tmp_path):
    result = next(detect(path, model, processor, **EVERYTHING))

    picture = result.plot()
    for name in ("frame.png", "frame.json", "frame.csv"):
        result.save(tmp_path / name)

    assert np.array_equal(np.asarray(picture), np.asarray(PIL.Image.open(tmp_path / "frame.png")))
    assert json.loads((tmp_path / "frame.json").read_text()) == result.to_dict()
    assert len((tmp_path / "frame.csv").read_text().splitlines()) == 1 + len(result.to_rows())
    with pytest.raises(ValueError, match=r"saved as .csv, .json or a picture such as .png, got 'frame.mp4'"):
        result.save(tmp_path / "frame.mp4")
    with pytest.raises(ValueError, match="frames of camera 0 cannot be seen again"):
        replace(result, video="camera 0").plot()
