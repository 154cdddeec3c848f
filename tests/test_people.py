"""People through a video: who is who, and who does what from when to when."""

import itertools

import numpy as np
import pytest

from classquery.engine.detection.people import link_people, list_people
from classquery.engine.detection.results import ActorDetection, FrameDetections


def frames_of(*positions: dict[str, float], rate: float = 1.0, actions: dict | None = None) -> list[FrameDetections]:
    """Frames with a box of width 20 at the position of each named person; `actions` by name and frame."""
    return [
        FrameDetections(
            round(30 * index / rate),
            index / rate,
            [
                ActorDetection((x, 10.0, x + 20, 50.0), 0.9, (actions or {}).get((name, index), [("stand", 0.8)]))
                for name, x in people.items()
            ],
            (100, 300),
            "kitchen.mp4",
        )
        for index, people in enumerate(positions)
    ]


def ids(frames: list[FrameDetections]) -> list[list[int]]:
    return [[actor.person_id for actor in frame.actors] for frame in frames]


def timeline(frames: list[FrameDetections], **options) -> list[tuple]:
    (person,) = list_people(link_people(frames, **options), **options)
    return [(segment.label, segment.start_seconds, segment.end_seconds) for segment in person.timeline]


def test_people_keep_their_numbers_while_they_move():
    frames = frames_of(
        {"a": 0, "b": 60}, {"a": 10, "b": 50}, {"b": 40, "a": 20}, {"b": 34, "a": 26}, {"b": 25, "a": 33}
    )

    assert ids(link_people(frames))[:3] == [[1, 2], [1, 2], [2, 1]]


def test_crowd_is_told_apart_by_overlap():
    start = {str(person): 12.0 * person for person in range(8)}
    frames = frames_of(*({name: x + 3 * step for name, x in start.items()} for step in range(6)), rate=5)

    assert ids(link_people(frames)) == [list(range(1, 9))] * 6


def test_person_who_is_missed_for_a_moment_stays_the_same():
    frames = frames_of({"a": 0}, {}, {"a": 4}, {}, {}, {"a": 4})

    assert ids(link_people(frames)) == [[1], [], [1], [], [], [2]]
    assert ids(link_people(frames, max_gap_seconds=2)) == [[1], [], [1], [], [], [1]]
    assert ids(link_people(frames, max_gap_seconds=0)) == [[1], [], [2], [], [], [3]]


def test_dropped_frames_are_gaps_in_time():
    frames = frames_of(*[{"a": 0}] * 9)

    assert ids(link_people([frames[0], frames[8]])) == [[1], [1]]
    assert ids(link_people([*frames[:3], frames[8]])) == [[1], [1], [1], [2]]


def test_nobody_is_nobody():
    assert link_people([]) == []
    assert list_people(link_people(frames_of({}, {}))) == []


def test_action_lasts_from_half_way_before_to_half_way_behind_its_frames():
    walk = {("a", index): [("walk", 0.9)] for index in (2, 3)}

    assert ("walk", 1.5, 3.5) in timeline(frames_of(*[{"a": 0}] * 6, actions=walk))
    assert ("walk", 0.75, 1.75) in timeline(frames_of(*[{"a": 0}] * 6, actions=walk, rate=2))


def test_longer_silence_divides_an_action():
    walk = {("a", index): [("walk", 0.9)] for index in (2, 3, 4)}
    frames = frames_of(*[{"a": 0}] * 7, actions=walk)

    assert timeline(frames) == [("stand", 0.0, 1.5), ("walk", 1.5, 4.5), ("stand", 4.5, 6.5)]
    assert timeline(frames, max_gap_seconds=3) == [("stand", 0.0, 6.5), ("walk", 1.5, 4.5)]


def test_actions_go_on_at_the_same_time():
    both = {("a", 1): [("stand", 0.6), ("talk", 0.5)]}

    (person,) = list_people(link_people(frames_of({"a": 0}, {"a": 0}, {"a": 0}, actions=both)), end_seconds=2.2)

    assert [segment.to_dict() for segment in person.timeline] == [
        {"label": "stand", "start_seconds": 0.0, "end_seconds": 2.2, "score": pytest.approx(2.2 / 3, abs=1e-4)},
        {"label": "talk", "start_seconds": 0.5, "end_seconds": 1.5, "score": 0.5},
    ]


def test_people_have_tubes():
    people = list_people(link_people(frames_of({"a": 0, "b": 100}, {"b": 100}, {"a": 2, "b": 100})))

    assert [person.frame_indices.tolist() for person in people] == [[0, 60], [0, 30, 60]]
    np.testing.assert_array_equal(people[0].boxes, [[0, 10, 20, 50], [2, 10, 22, 50]])


def test_people_without_numbers_raise():
    with pytest.raises(ValueError, match="link_people"):
        list_people(frames_of({"a": 0}))


def test_numbers_do_not_change_what_was_detected():
    frames = frames_of({"a": 0, "b": 30}, {"b": 33})

    for before, after in zip(frames, link_people(frames), strict=True):
        assert [(a.box, a.actions) for a in before.actors] == [(a.box, a.actions) for a in after.actors]
    assert len(set(itertools.chain(*ids(link_people(frames))))) == 2
