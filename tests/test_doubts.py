"""What is asked about annotations, when they are read and before a run trains on them."""

import pytest
from utils import tiny_config

from classquery.data.annotations.doubts import ask_about_names, ask_about_shapes
from classquery.data.annotations.registry import make_clips
from classquery.data.annotations.schema import to_dataset
from classquery.data.annotations.videos import Video
from classquery.engine.run.doubts import list_doubts, refuse_empty


@pytest.mark.parametrize(
    "names",
    [
        ["caf\u00e9", "cafe\u0301"],
        ["walk", "walk\u200b"],
        ["walk fast", "walk\u00a0fast"],
        ["Walk", "walk"],
        ["ｗalk", "walk"],
    ],
)
def test_classes_that_look_alike_are_asked_about(names):
    doubts = list(ask_about_names([*names, "sit"]))
    assert doubts == [f"classes whose names look alike: {ascii(names[0])}, {ascii(names[1])}; are they one?"]


def test_classes_that_join_others_are_asked_about():
    (doubt,) = ask_about_names(["sit", "walk", "walk; sit", "run;jump", "a, b"])
    assert doubt.startswith("is the class 'walk; sit' meant, or several?")


def test_shapes_are_compared_where_a_size_is_given():
    videos = {"a": Video("a", "video", 9, 96, 128, 15.0), "b": Video("b", "video", 9, 90, 160, 15.0), "c": None}
    assert list(ask_about_shapes(None, videos)) == []
    assert list(ask_about_shapes((640, 480), {"a": videos["a"]})) == []
    (doubt,) = ask_about_shapes((640, 480), videos)
    assert doubt.endswith("another shape: b (160x90)")


def keyframes(video, *labels_of_actors):
    tubes = [
        {"track_id": None, "labels": labels, "frames": None, "boxes": [[0.1, 0.1, 0.9, 0.9]]}
        for labels in labels_of_actors
    ]
    place = {"clip_id": f"{video}_0", "video": video, "source": "video", "timestamp": 0.0, "video_seconds": 0.0}
    return clips_of([place | {"tubes": tubes}], "keyframe")


def clips_of(rows, output_frames):
    sampling = {"num_labels": 3, "num_frames": 2, "frame_stride": 1, "frames_per_second": 15.0}
    return make_clips(to_dataset(rows), output_frames=output_frames, **sampling)


def config_of(num_queries):
    return tiny_config(num_queries=num_queries, num_labels=3, id2label={0: "sit", 1: "walk", 2: "wave"})


def test_nothing_is_asked_about_ordinary_data():
    train, validation = keyframes("a.mp4", [0], [1, 2]), keyframes("b.mp4", [0, 1, 2])
    assert list(list_doubts(train, validation, config_of(2))) == []
    assert list(list_doubts(None, validation, config_of(2))) == []


def test_odd_data_are_asked_about():
    doubts = list(list_doubts(keyframes("a.mp4", [0], [2], None), keyframes("a.mp4", [1]), config_of(2)))
    assert [doubt.rpartition(": ")[2] for doubt in (doubts[0], *doubts[2:])] == ["walk", "sit, wave", "a.mp4"]
    assert doubts[1].startswith("there are up to 3 actors at once, and the model finds 2 at most")
    hidden = list_doubts(keyframes("a.mp4", [0], [2]), keyframes("b.mp4", [0, 1, 2]), config_of(2), novel=["walk"])
    assert list(hidden) == []


def test_actors_of_tubes_are_counted_in_a_frame():
    def tube(track, labels, frames):
        return {"track_id": track, "labels": labels, "frames": frames, "boxes": [[0.1, 0.1, 0.9, 0.9]] * len(frames)}

    # Two labels of one track are one actor; the third comes when the first has gone.
    tubes = [tube(0, [0], [0, 1]), tube(0, [1], [1, 2]), tube(None, [2], [1]), tube(None, [2], [3])]
    row = {"clip_id": "a", "video": "a.mp4", "source": "video", "num_frames": 4, "tubes": tubes}
    clips = clips_of([row], "all")
    assert list(list_doubts(clips, None, config_of(2))) == []
    (doubt,) = list_doubts(clips, None, config_of(1))
    assert doubt.startswith("there are up to 2 actors")


def test_splits_without_clips_are_refused():
    refuse_empty({"train": None, "validation": keyframes("a.mp4", [0])})
    with pytest.raises(ValueError, match="no clip in the validation split"):
        refuse_empty({"train": keyframes("a.mp4", [0]), "validation": clips_of([], "keyframe")})
