"""Files of annotation tools and data sets, small ones by hand: what each of their rules means."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import try_mutations

from classquery.data import load_action_dataset, load_action_labels
from classquery.data.__main__ import main
from classquery.data.annotations.coco_vid import write_coco_vid
from classquery.data.annotations.collecting import find_attributes, video_names
from classquery.data.annotations.cvat_writing import write_cvat
from classquery.data.annotations.entries import Content, Context, Source
from classquery.data.annotations.formats import read_annotations
from classquery.data.annotations.label_studio import write_label_studio
from classquery.data.annotations.schema import AnnotationError, ProblemCollector
from classquery.data.annotations.via3 import write_via3
from classquery.data.preparation.preparing import Encoding, prepare_videos


SIZE = (200, 100)  # Width and height of all videos.


def files_of(name: str) -> dict[str, str]:
    """The files of one format, by their names; two people in `a.mp4`, where the format can say so."""
    return {key: text if isinstance(text, str) else json.dumps(text) for key, text in FILES[name].items()}


def read(folder: Path, files: dict[str, Any], **options: Any) -> Content:
    """Read files, and raise if there was any problem."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_folder(folder, **options)[1]


def read_folder(folder: Path, **options: Any) -> tuple[str, Content]:
    problems = ProblemCollector(folder)
    sources = [Source(path, path.name) for path in sorted(folder.rglob("*")) if path.is_file()]
    fmt, content = read_annotations(sources, Context(problems, **options))
    problems.raise_if_any()
    return fmt.name, content


def rows(content: Content) -> dict[tuple, tuple]:
    """Box in pixels of `SIZE` and classes, by video, track and frame or time."""
    found = {}
    for entry in content.entries:
        times = [entry.timestamp] if entry.frames is None else np.asarray(entry.frames).tolist()
        scale = 1 if content.box_format == "pixel" else np.array([*SIZE, *SIZE])
        for time, box in zip(times, np.asarray(entry.boxes, dtype=float) * scale, strict=True):
            # Tracks of one file are told apart from those of another by its name.
            who = entry.track_id[1] if isinstance(entry.track_id, tuple) else entry.track_id
            key = (entry.video, entry.place if who is None else who, time)
            _, labels = found.get(key, (None, set()))
            found[key] = (tuple(np.round(box, 6).tolist()), labels | set(entry.labels or ()))
    return found


def unlabelled(content: Content) -> list[Any]:
    """The tracks of which nobody said what they do."""
    return [entry.track_id[1] for entry in content.entries if entry.labels is None]


VIA_ATTRIBUTES = {
    "1": {"aname": "Person ID", "anchor_id": "FILE1_Z1_XY1", "type": 1, "desc": "", "options": {}},
    "2": {
        "aname": "Behaviours",
        "anchor_id": "FILE1_Z1_XY1",
        "type": 2,
        "options": {"0": "eat", "5": "run"},
    },
    "3": {"aname": "mood", "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "", "options": {"0": "calm"}},
}
VIA_REGIONS = {
    "1_a": {"vid": "1", "flg": 0, "z": [0.033], "xy": [2, 10, 20, 30, 40], "av": {"1": "7", "2": "5,0"}},
    "1_b": {"vid": "1", "flg": 0, "z": [2], "xy": [2, 10.5, 20, 30, 40], "av": {"1": "8", "2": ""}},
    "2_c": {"vid": "2", "flg": 0, "z": [1.5], "xy": [2, 1, 2, 3, 4], "av": {"2": "0"}},
    "1_d": {"vid": "1", "flg": 0, "z": [0, 2], "xy": [], "av": {"3": "0"}},
    "1_e": {"vid": "1", "flg": 0, "z": [0], "xy": [7, 1, 2, 3, 4, 5, 6], "av": {"2": "0"}},
}
VIA_PROJECT = {
    "project": {"pname": "x", "data_format_version": "3.1.1", "vid_list": ["1", "2"]},
    "config": {"file": {"loc_prefix": {"1": ""}}},
    "attribute": VIA_ATTRIBUTES,
    "file": {
        "1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""},
        "2": {"fid": "2", "fname": "", "type": 4, "loc": 2, "src": "https://host/some%20folder/b%20c.mp4?token=1"},
    },
    "metadata": VIA_REGIONS,
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
}


def via_csv() -> str:
    header = "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
    lines = ["# Exported using VGG Image Annotator", f"# ATTRIBUTE = {json.dumps(VIA_ATTRIBUTES)}", header]
    names = {"1": ["a.mp4"], "2": ["https://host/some%20folder/b%20c.mp4?token=1"]}
    for name, region in VIA_REGIONS.items():
        cells = [name, names[region["vid"]], 0, region["z"], region["xy"], region["av"]]
        texts = [cell if isinstance(cell, str) else json.dumps(cell) for cell in cells]
        lines.append(",".join(text if text == "0" else '"' + text.replace('"', '""') + '"' for text in texts))
    return "\n".join(lines)


def ls_entry(frame: int, x: float, enabled: bool = True, **more: Any) -> dict[str, Any]:
    return {"frame": frame, "enabled": enabled, "rotation": 0, "x": x, "y": 10, "width": 20, "height": 30, **more}


def ls_region(name: str, sequence: list, labels: tuple[str, ...] = ("run",), **value: Any) -> dict[str, Any]:
    value = {"framesCount": 8, "duration": 0.8, "sequence": sequence, "labels": list(labels)} | value
    return {"id": name, "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}


def ls_task(*results: dict, video: str = "/data/upload/3/0f1e2d3c-a.mp4", **more: Any) -> dict[str, Any]:
    return {"id": 4, "data": {"video": video}, "annotations": [{"id": 1, "result": list(results)}], **more}


FIFTYONE_SAMPLE = {"_id": {"$oid": "a0"}, "filepath": "data/a.mp4", "metadata": {"frame_rate": 30.0}}
FILES = {
    "via3": {"via_project_1.json": VIA_PROJECT},
    "label_studio": {"project-3.json": [ls_task(ls_region("k", [ls_entry(1, 10), ls_entry(5, 50, False)]))]},
    "fiftyone": {
        "metadata.json": {"name": "x", "sample_collection_name": "samples.1"},
        "samples.json": {
            "samples": [FIFTYONE_SAMPLE, FIFTYONE_SAMPLE | {"_id": {"$oid": "a1"}, "filepath": "data/b.mp4"}]
        },
        "frames.json": {
            "frames": [
                {
                    "frame_number": 1,
                    "_sample_id": {"$oid": "a0"},
                    "ground_truth": {
                        "_cls": "Detections",
                        "detections": [
                            {"label": "run", "bounding_box": [0.1, 0.2, 0.3, 0.4], "index": 1},
                            {"label": "eat", "bounding_box": [0.1, 0.2, 0.3, 0.4], "index": 1},
                            {"label": "eat", "bounding_box": [0.5, 0.5, 0.5, 0.5]},
                        ],
                    },
                },
                {"frame_number": 2, "_sample_id": {"$oid": "a0"}, "ground_truth": None},
            ]
        },
    },
    "coco_vid": {
        "annotations/train.json": {
            "categories": [{"id": 1, "name": "ape"}],
            "videos": [{"id": 3, "name": "a.mp4", "fps": 30.0, "frames": 40, "width": 200, "height": 100}],
            "images": [
                {"id": 1, "video_id": 3, "file_name": "a/000000.jpg", "frame_id": 0},
                {"id": 2, "video_id": 3, "file_name": "a/000020.jpg", "frame_id": 10},
            ],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": [10, 20, 30, 40],
                    "behaviors": [0],
                    "instance_id": 3,
                },
                {
                    "id": 2,
                    "image_id": 2,
                    "category_id": 1,
                    "bbox": [11, 20, 30, 40],
                    "behaviors": [],
                    "instance_id": 3,
                },
                {
                    "id": 3,
                    "image_id": 2,
                    "category_id": 1,
                    "bbox": [1, 2, 3, 4],
                    "behaviors": [1, 0],
                    "instance_id": 4,
                },
            ],
        },
        "annotations/action/action_list.txt": 'item {\n  name: "run"\n  id: 1\n}\nitem {\n  name: "eat"\n  id: 2\n}\n',
    },
    "kpf": {
        "a.r13.geom.yml": (
            '- { meta: "a" }\n'
            "- { geom: {id1: 1, id0: 0, ts0: 10, ts1: 0.33, g0: 10 20 40 60, src: truth } }\n"
            '- { geom: {id1: 1, id0: 1, ts0: 12, ts1: 0.4, g0: "12 20 42 60", src: truth } }\n'
            "- { geom: {id1: 2, id0: 2, ts0: 10, ts1: 0.33, g0: 1 2 3 4, src: truth } }\n"
        ),
        "a.r13.types.yml": (
            "- { types: { id1: 1, cset3: { Person: 0.9, Vehicle: 0.1 } } }\n"
            "- types: { id1: 2, cset3: { Vehicle: 1.0 } }\n"
        ),
        "a.r13.activities.yml": (
            "- { act: { act3: { sits: 1.0 }, id2: 1, timespan: [{tsr0: [10, 12]}], actors: [{ id1: 1 }] } }\n"
            "- { act: { act2: { talks: 1.0 }, id2: 2, timespan: [{tsr0: [0, 99]}],\n"
            "    actors: [{ id1: 1, timespan: [{tsr0: [12, 12]}, {tsr0: [40, 50]}] }] } }\n"
        ),
    },
    "road": {
        "road.json": {
            "all_action_labels": ["Red", "run", "Wait2X", "eat"],
            "action_labels": ["eat", "run"],
            "db": {
                "a": {
                    "split_ids": ["train_1", "val_2"],
                    "numf": 3,
                    "frames": {
                        "1": {
                            "annotated": 1,
                            "annos": {
                                "b1": {"box": [0.1, 0.2, 0.3, 0.4], "action_ids": [1, 2], "tube_uid": "u1"},
                                "b2": {"box": [0.5, 0.5, 1, 1], "action_ids": [3], "tube_uid": "u2"},
                            },
                        },
                        "2": {"annotated": 0, "annos": {}},
                        "3": {
                            "annotated": 1,
                            "annos": {"b3": {"box": [0.1, 0.2, 0.3, 0.4], "action_ids": [2], "tube_uid": "u1"}},
                        },
                    },
                },
                "b": {"split_ids": ["val_1"], "numf": 1, "frames": {"1": {"annotated": 1, "annos": {}}}},
            },
        }
    },
    "vatic": {
        "a.txt": (
            '0 10 20 40 60 0 0 0 0 "Person" "Carrying" "Walking"\n'
            '0 11 20 41 60 1 0 1 1 "Person"\n'
            '0 12 20 42 60 2 1 0 1 "Person" "Walking"\n'
            '3 1 2 3 4 1 0 0 0 "Person" "Sitting"\n'
        )
    },
    "mammalps": {
        "demo.json": {
            "info": {
                "file_id": "a",
                "file_path": "S1/C1/a.mp4",
                "fps": 30.0,
                "resolution": "200x100",
                "num_frames": 9,
            },
            "frames": [
                {
                    "frame_id": 0,
                    "detections": [
                        {"track_id": 1, "bbox": [10, 20, 40, 60], "attributes": {"action": "run", "action2": "none"}},
                        {"track_id": 2, "bbox": [1, 2, 3, 4], "attributes": {"action": "eat", "action2": "run"}},
                    ],
                },
                {"frame_id": 1, "detections": []},
            ],
        }
    },
    "ava_kinetics": {
        "kinetics_train_v1.0.csv": (
            "bbbb,5.0\naaaa,12.5,0.1,0.2,0.3,0.4,12\naaaa,12.5,0.1,0.2,0.3,0.4,80\naaaa,10.0,0.1,0.2,0.3,0.4,12\n"
            "cccc,7,0.5,0.5,1,1,1\n"
        )
    },
}
FILES |= {"via3_csv": {"export.csv": via_csv()}}


def test_via_3_regions_are_points_in_time(tmp_path):
    contents = [read(tmp_path / name, files_of(name)) for name in ("via3", "via3_csv")]

    for content, other in zip(contents, ("a.mp4", "https://host/some%20folder/b%20c.mp4?token=1"), strict=True):
        found = {key[1:] if key[0] == "a.mp4" else key[2:]: value for key, value in rows(content).items()}
        assert found == {
            (7, 0.033): ((10, 20, 40, 60), {"eat", "run"}),
            (8, 2): ((10.5, 20, 40.5, 60), set()),
            (1.5,): ((1, 2, 4, 6), {"eat"}),
        }
        assert content.ignored == {"temporal segments without a region": 1, "shapes: polygon": 1}
        assert other in content.videos or "b c.mp4" in list(content.videos.values())[1].names
        assert "b c.mp4" in list(content.videos.values())[1].names
        assert "classes are Behaviours; who it is says Person ID" in content.notes[0]


def test_via_3_asks_which_attribute_is_the_class(tmp_path):
    attributes = {"1": VIA_ATTRIBUTES["1"] | {"aname": "note"}, "2": VIA_ATTRIBUTES["1"] | {"aname": "colour"}}
    with pytest.raises(AnnotationError, match="which attribute is the class.*got note, colour"):
        read(tmp_path, {"p.json": VIA_PROJECT | {"attribute": attributes}})


def test_via_3_takes_the_one_list_of_options_whatever_its_name(tmp_path):
    attributes = VIA_ATTRIBUTES | {"2": VIA_ATTRIBUTES["2"] | {"aname": "what"}}

    content = read(tmp_path, {"p.json": VIA_PROJECT | {"attribute": attributes}})

    assert rows(content)["a.mp4", 7, 0.033][1] == {"eat", "run"}


def test_via_3_numbers_of_views_and_files_may_be_numbers(tmp_path):
    """A video that is part of the project itself has no name, so that nobody can tell which it is."""
    region = {"vid": 1, "flg": 0, "z": [1], "xy": [2, 1, 2, 3, 4], "av": {"1": 7, "2": 0}}
    project = VIA_PROJECT | {"metadata": {"1_a": region}, "view": {"1": {"fid_list": [1]}}}
    inline = {"1": {"fid": "1", "fname": "", "type": 4, "loc": 3, "src": "data:video/mp4;base64,AAAA"}}

    assert rows(read(tmp_path, {"p.json": project})) == {("a.mp4", 7, 1): ((1, 2, 4, 6), {"eat"})}
    with pytest.raises(AnnotationError, match="region 1_a: its file has no name"):
        read(tmp_path, {"p.json": project | {"file": inline}})


def test_via_2_is_told_apart(tmp_path):
    with pytest.raises(AnnotationError, match="is of VIA 2"):
        read(tmp_path, {"p.json": {"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}}})


def test_label_studio_holds_boxes_while_they_are_enabled(tmp_path):
    """Frames count from 1; a disabled entry shows itself, and nothing behind it until the next one."""
    sequence = [ls_entry(1, 10), ls_entry(3, 30, False), ls_entry(6, 50)]

    content = read(tmp_path, {"p.json": [ls_task(ls_region("k", sequence))]})

    boxes = {key[2]: box for key, (box, _) in rows(content).items()}
    assert {frame: box[0] for frame, box in boxes.items()} == {0: 20, 1: 40, 2: 60, 5: 100, 6: 100, 7: 100}
    assert boxes[1] == (40, 10, 80, 40)
    (claim,) = content.videos.values()
    assert "a.mp4" in claim.names


def test_label_studio_export_with_interpolated_frames_says_the_same(tmp_path):
    sequence = [ls_entry(1, 10), ls_entry(3, 30, False), ls_entry(6, 50)]
    written_out = [*sequence, ls_entry(2, 20, auto=True), ls_entry(7, 50, auto=True), ls_entry(8, 50, auto=True)]
    written_out.sort(key=lambda entry: entry["frame"])

    contents = [
        read(tmp_path / str(number), {"p.json": [ls_task(ls_region("k", frames))]})
        for number, frames in enumerate((sequence, written_out))
    ]

    assert rows(contents[0]).keys() == rows(contents[1]).keys()
    assert all(rows(contents[1])[key] == value for key, value in rows(contents[0]).items())


class Video:
    """What is known of a video of 8 frames, 10 in a second."""

    width, height, num_frames, frames_per_second = *SIZE, 8, 10.0


@pytest.fixture
def one_video(monkeypatch):
    monkeypatch.setattr("classquery.data.annotations.label_studio.look_at_video", lambda *_: Video)


def test_label_studio_rotated_box_is_the_one_that_encloses_it(tmp_path, one_video):
    """A quarter turn about the top left corner of a box of 40 x 30 pixels: 30 wide, 40 high, on the left of it."""
    region = ls_region("k", [ls_entry(4, 50, False, rotation=90)])

    content = read(tmp_path, {"p.json": [ls_task(region)]})

    ((box, _),) = rows(content).values()
    np.testing.assert_allclose(box, (70, 10, 100, 50), atol=1e-6)


def test_label_studio_holds_boxes_to_the_end_of_the_video(tmp_path, one_video):
    content = read(tmp_path, {"p.json": [ls_task(ls_region("k", [ls_entry(7, 10)], framesCount=9, duration=0.9))]})

    assert [key[2] for key in rows(content)] == [6, 7]


def test_label_studio_frames_of_another_rate_are_taken_over_by_time(tmp_path, one_video):
    """The player counted 20 in a second and the video has 10: entry 5 of the one is frame 2 of the other."""
    sequence = [ls_entry(1, 10), ls_entry(5, 30, False), ls_entry(9, 50)]

    content = read(tmp_path, {"p.json": [ls_task(ls_region("k", sequence, framesCount=16, duration=0.8))]})

    boxes = {key[2]: box[0] for key, (box, _) in rows(content).items()}
    assert boxes == {0: 20, 1: 40, 2: 60, 4: 100, 5: 100, 6: 100, 7: 100}
    assert "was annotated in 20 frames per second, and the video has 10" in content.warnings[0]


def test_label_studio_choices_per_region_are_the_classes(tmp_path):
    chosen = {"id": "k", "type": "choices", "value": {"choices": ["eat", "none"]}}
    others = [ls_region("j", [ls_entry(1, 1, False)], ("person",)), {"id": "x", "type": "timelinelabels", "value": {}}]
    task = ls_task(ls_region("k", [ls_entry(1, 10, False)], ("person",)), chosen, *others, predictions=[{}])

    content = read(tmp_path, {"p.json": [task]})

    assert {key[1]: labels for key, (_, labels) in rows(content).items()} == {"k": {"eat"}, "j": set()}
    assert unlabelled(content) == ["j"]
    assert content.ignored == {"results of type timelinelabels": 1, "predictions": 1}


def test_label_studio_labels_may_be_results_of_their_own(tmp_path):
    """Regions that were begun and have no box yet are left out."""
    region, empty = ls_region("k", [ls_entry(1, 10, False)], ()), ls_region("j", [])
    labels = [{"id": name, "type": "labels", "value": {"labels": ["eat"]}} for name in ("k", "gone")]

    content = read(tmp_path, {"p.json": [ls_task(region, empty, *labels)]})

    assert {key[1]: labels for key, (_, labels) in rows(content).items()} == {"k": {"eat"}}
    assert content.ignored == {"regions without a box": 1, "results of type labels": 1}


def test_label_studio_choices_of_the_whole_video_are_no_classes(tmp_path):
    scene = {"id": "s", "type": "choices", "value": {"choices": ["indoors"]}}
    leaf = {"id": "k", "type": "taxonomy", "value": {"taxonomy": [["moves", "run"], ["eat"]]}}
    region = ls_region("k", [ls_entry(1, 10, False)], ("person",))

    contents = [
        read(tmp_path / str(number), {"p.json": [ls_task(region, *more)]})
        for number, more in enumerate([[scene], [scene, leaf]])
    ]

    assert [set(content.entries[0].labels) for content in contents] == [{"person"}, {"run", "eat"}]
    assert contents[0].ignored == {"results of type choices": 1}


def test_label_studio_export_as_json_min_says_the_same(tmp_path):
    region = ls_region("k", [ls_entry(1, 10, False)])
    task = {"video": "/data/upload/3/0f1e2d3c-a.mp4", "id": 4, "box": [region["value"]], "annotator": 1}

    content = read(tmp_path, {"p.json": [task]})

    assert {(key[0], key[2]): labels for key, (_, labels) in rows(content).items()} == {(task["video"], 0): {"run"}}


def test_label_studio_reads_one_annotation_of_a_task(tmp_path):
    good, bad = (ls_region(name, [ls_entry(1, 10, False)]) for name in "kj")
    annotations = [
        {"id": 1, "result": [bad], "updated_at": "2026-02-01"},
        {"id": 2, "result": [good], "ground_truth": True, "updated_at": "2026-01-01"},
        {"id": 3, "result": [bad], "was_cancelled": True},
    ]
    empty = {"id": 5, "data": {"video": "b.mp4"}, "annotations": []}

    content = read(tmp_path, {"p.json": [ls_task(annotations=annotations), empty]})

    assert [key[1] for key in rows(content)] == ["k"]
    assert len(content.videos) == 1  # Nobody looked at the other one.
    assert content.ignored["tasks that nobody annotated"] == 1


def test_label_studio_frame_0_means_that_frames_count_from_0(tmp_path):
    content = read(tmp_path, {"p.json": [ls_task(ls_region("k", [ls_entry(0, 10), ls_entry(1, 10, False)]))]})

    assert [key[2] for key in rows(content)] == [0, 1]


def test_fiftyone_frames_count_from_1(tmp_path):
    content = read(tmp_path, files_of("fiftyone"))

    assert rows(content) == {
        ("data/a.mp4", 1, 0): ((20, 20, 80, 60), {"run", "eat"}),
        ("data/a.mp4", "frames.json, frames[0], detection 2", 0): ((100, 50, 200, 100), {"eat"}),
    }
    assert content.videos["data/a.mp4"].fps == 30
    assert content.ignored == {"videos without frames": 1}


def test_fiftyone_attributes_that_are_named_like_an_action_are_the_class(tmp_path):
    detections = [
        {"label": "person", "bounding_box": [0, 0, 1, 1], "index": 1, "action": "run"},
        {"label": "person", "bounding_box": [0, 0, 1, 1], "index": 2, "attributes": {"action": {"value": "eat"}}},
        {"label": "person", "bounding_box": [0, 0, 1, 1], "index": 3, "actions": ["eat", "run"]},
    ]
    frame = {"frame_number": 3, "_sample_id": "a0", "boxes": {"_cls": "Detections", "detections": detections}}
    files = files_of("fiftyone") | {"frames.json": {"frames": [frame]}, "samples.json": {"samples": [FIFTYONE_SAMPLE]}}

    found = rows(read(tmp_path, files))

    assert {key[1:]: labels for key, (_, labels) in found.items()} == {
        (1, 2): {"run"},
        (2, 2): {"eat"},
        (3, 2): {"eat", "run"},
    }


def test_fiftyone_export_with_a_file_for_each_sample_and_frame_says_the_same(tmp_path):
    """As `use_dirs=True` writes it; labels of whole videos are counted, and detections of one box are one person."""
    files = files_of("fiftyone")
    samples, frames = json.loads(files["samples.json"])["samples"], json.loads(files["frames.json"])["frames"]
    frames[0]["ground_truth"]["detections"].append({"label": "run", "bounding_box": [0.5, 0.5, 0.5, 0.5]})
    samples[0] |= {"events": {"_cls": "TemporalDetections", "detections": []}}
    written = {"metadata.json": files["metadata.json"], "tags.json": {"tags": []}}
    written |= {f"samples/{number:06d}-a.json": sample for number, sample in enumerate(samples)}
    written |= {f"frames/{number:06d}-a.json": frame for number, frame in enumerate(frames)}

    content = read(tmp_path, written)

    assert rows(content) == {
        ("data/a.mp4", 1, 0): ((20, 20, 80, 60), {"run", "eat"}),
        ("data/a.mp4", "000000-a.json, detection 2", 0): ((100, 50, 200, 100), {"eat", "run"}),
    }
    assert content.ignored == {"videos without frames": 1, "TemporalDetections of videos, 'events'": 1}


def test_fiftyone_frames_without_any_label_are_nobody(tmp_path):
    frame = {"frame_number": 1, "_sample_id": {"$oid": "a0"}, "ground_truth": None}

    content = read(tmp_path, files_of("fiftyone") | {"frames.json": {"frames": [frame]}})

    assert not content.entries
    assert list(content.videos) == ["data/a.mp4"]


def test_fiftyone_asks_which_field_has_the_boxes(tmp_path):
    frame = {"frame_number": 1, "_sample_id": "a0", "mine": {"_cls": "Detections"}, "yours": {"_cls": "Detections"}}

    with pytest.raises(AnnotationError, match=r"which field has the boxes.*got mine \(Detections\), yours"):
        read(tmp_path, files_of("fiftyone") | {"frames.json": {"frames": [frame]}})


def test_coco_vid_frames_are_the_numbers_of_the_files(tmp_path):
    content = read(tmp_path, files_of("coco_vid"))

    assert rows(content) == {
        ("a.mp4", 3, 0): ((10, 20, 40, 60), {"run"}),
        ("a.mp4", 3, 20): ((11, 20, 41, 60), set()),
        ("a.mp4", 4, 20): ((1, 2, 4, 6), {"run", "eat"}),
    }
    assert content.videos["a.mp4"].annotated_frames.tolist() == [0, 20]
    assert content.videos["a.mp4"].size == SIZE


def test_coco_vid_without_behaviours_has_categories_and_may_count_from_1(tmp_path):
    document = {
        "categories": [{"id": 1, "name": "run"}],
        "videos": [{"id": 1, "name": "a.mp4"}],
        "images": [{"id": 9, "video_id": 1, "file_name": "a/img_000001.jpg", "frame_id": 0}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "attributes": {"track_id": 5}}
        ],
    }

    assert rows(read(tmp_path, {"train.json": document})) == {("a.mp4", 5, 0): ((1, 2, 4, 6), {"run"})}


def test_coco_vid_ids_are_the_same_as_numbers_and_text_and_crowds_are_regions(tmp_path):
    files = files_of("coco_vid")
    document = json.loads(files["annotations/train.json"])
    document["videos"][0]["id"], document["annotations"][1]["image_id"] = "3", "2"
    document["annotations"][0] |= {"iscrowd": 1}

    content = read(tmp_path, files | {"annotations/train.json": document})

    assert {key[1:] for key in rows(content)} == {("train.json, annotation 1", 0), (3, 20), (4, 20)}
    assert [entry.frames for entry in content.entries if entry.is_ignored] == [[0]]


def test_coco_vid_behaviours_need_their_list(tmp_path):
    files = files_of("coco_vid")
    del files["annotations/action/action_list.txt"]

    with pytest.raises(AnnotationError, match="put their action_list.txt beside"):
        read(tmp_path, files)


@pytest.mark.parametrize("is_plain", [True, False])
def test_kpf_activities_hold_in_the_timespan_of_the_actor(tmp_path, is_plain):
    """Both ends included; also where a packet is more than plain values, and YAML has to be read as such."""
    files = files_of("kpf")
    if not is_plain:
        files["a.r13.geom.yml"] = files["a.r13.geom.yml"].replace("src: truth", "src: [truth]", 1)

    content = read(tmp_path, files)

    (stem,) = content.videos
    assert rows(content) == {
        (stem, 1, 10): ((10, 20, 40, 60), {"sits"}),
        (stem, 1, 12): ((12, 20, 42, 60), {"sits", "talks"}),
    }
    assert content.videos[stem].names == ("a.r13", "a")
    assert content.ignored == {"boxes of type Vehicle": 1}


def test_kpf_shapes_that_are_no_boxes_are_counted(tmp_path):
    files = files_of("kpf")
    files["a.r13.geom.yml"] += "- { geom: {id1: 1, id0: 9, ts0: 11, poly0: [[1, 2], [3, 4], [5, 6]] } }\n"

    content = read(tmp_path, files)

    assert [key[2] for key in rows(content)] == [10, 12]
    assert content.ignored["packets of other shapes than a box"] == 1


def test_road_classes_index_all_labels_and_are_those_of_the_short_list(tmp_path):
    content = read(tmp_path, files_of("road"), splits=("train",))

    assert rows(content) == {
        ("a", "u1", 0): ((20, 20, 60, 40), {"run"}),
        ("a", "u2", 0): ((100, 50, 200, 100), {"eat"}),
        ("a", "u1", 2): ((20, 20, 60, 40), set()),
    }
    assert content.videos["a"].annotated_frames.tolist() == [0, 2]
    assert list(content.videos) == ["a"]
    assert content.ignored == {"actions 'Wait2X', which action_labels leaves out": 2}


def test_vatic_lost_boxes_are_none_and_occluded_ones_are(tmp_path):
    content = read(tmp_path, files_of("vatic"))

    assert rows(content) == {
        ("a", 0, 0): ((10, 20, 40, 60), {"Carrying", "Walking"}),
        ("a", 0, 1): ((11, 20, 41, 60), set()),
        ("a", 3, 1): ((1, 2, 3, 4), {"Sitting"}),
    }
    assert content.ignored == {"lines of people who are lost": 1}


def test_mammalps_second_actions_count_unless_none(tmp_path):
    content = read(tmp_path, files_of("mammalps"))

    assert rows(content) == {
        ("S1/C1/a.mp4", 1, 0): ((10, 20, 40, 60), {"run"}),
        ("S1/C1/a.mp4", 2, 0): ((1, 2, 3, 4), {"eat", "run"}),
    }
    claim = content.videos["S1/C1/a.mp4"]
    assert (claim.size, claim.fps, claim.annotated_frames.tolist()) == (SIZE, 30, [0, 1])


def test_ava_kinetics_times_begin_where_the_clip_does(tmp_path):
    """The third row is at the very start of its clip, which is none of its moments; `cccc` is a whole video."""
    videos = [Path("aaaa_000010_000020.mp4"), Path("aaaa_000020_000030.mp4"), Path("bbbb_000001_000011.mp4")]

    content = read(tmp_path, files_of("ava_kinetics"), list_videos=lambda: videos)

    found = {(key[0], key[2]): value for key, value in rows(content).items()}
    assert found == {
        ("aaaa_000010_000020.mp4", 2.5): ((20, 20, 60, 40), {"stand", "watch (a person)"}),
        ("cccc", 7): ((100, 50, 200, 100), {"bend/bow (at the waist)"}),
    }
    assert content.ignored == {
        "rows without a box (frames without people)": 1,
        "boxes at times that no clip has": 1,
    }


def test_ava_kinetics_rows_without_people_may_have_empty_cells(tmp_path):
    content = read(tmp_path, {"k.csv": "aaaa,12,,,,,\naaaa,12.366667,0.1,0.2,0.3,0.4,12\n"})

    assert list(rows(content)) == [("aaaa", "k.csv, row 2", 12.366667)]
    assert content.ignored["rows without a box (frames without people)"] == 1


def test_formats_are_listed_by_name(capsys):
    assert main(["formats"]) == 0

    assert "label_studio   read, written  Label Studio video JSON" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_found_by_its_content(tmp_path, name):
    read(tmp_path, files_of(name))

    assert read_folder(tmp_path)[0] == name.removesuffix("_csv")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused_or_read(tmp_path, name):
    files = files_of(name)
    read(tmp_path, files)
    for number, file_name in enumerate(files):
        try_mutations(
            lambda _: read_folder(tmp_path),
            tmp_path / file_name,
            AnnotationError,
            count=48,
            seed=number,
            check=lambda result: rows(result[1]),
        )


def test_somebody_with_two_boxes_in_a_frame_is_a_problem_of_its_place(tmp_path):
    files = files_of("vatic")
    files["a.txt"] += '0 99 20 100 60 0 0 0 0 "Person" "Carrying" "Walking"\n'

    with pytest.raises(AnnotationError, match=r"a.txt, line 5: 0 has two boxes in frame 0"):
        read(tmp_path, files)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Person ID", "Actions"], ["Actions"]),
        (["class", "behaviour_1", "behaviour 2"], ["behaviour_1", "behaviour 2"]),
        (["ACTIVITIES", "reaction time"], ["ACTIVITIES"]),
        (["person", "person_action"], ["person_action"]),
        (["colour"], []),
    ],
)
def test_class_attributes_are_found_by_the_usual_names(names, found):
    assert find_attributes(names, ("action", "activity", "behaviour", "class")) == found


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("/data/upload/3/0f1e2d3c-a b.mp4", "a b.mp4"),
        ("/data/local-files/?d=videos%2Fa.mp4", "a.mp4"),
        ("s3://bucket/videos/a.mp4", "a.mp4"),
        ("https://host/a%20b.mp4?sig=1", "a b.mp4"),
        (r"C:\videos\a.mp4", "a.mp4"),
    ],
)
def test_videos_have_the_names_that_are_left_of_paths_and_links(reference, name):
    assert name in video_names(reference)


def test_boxes_may_be_drawn_in_frames_of_another_size_than_the_video(tmp_path, two_movies):
    (tmp_path / "videos").symlink_to(two_movies)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "demo_val_000.txt").write_text('0 384 216 768 648 3 0 0 0 "Person" "Walking"\n')

    (row,) = load_action_dataset("custom", tmp_path, "train", box_format="3840x2160")

    assert row["tubes"][0]["boxes"] == [pytest.approx([0.1, 0.1, 0.2, 0.3])]
    with pytest.raises(AnnotationError, match='must lie in the 128 x 96 pixels.*box_format="3840x2160" says'):
        load_action_dataset("custom", tmp_path, "train")


def test_data_of_several_files_stay_usable_when_they_are_prepared(tmp_path, two_movies):
    source, prepared = tmp_path / "source", tmp_path / "prepared"
    (source / "train").mkdir(parents=True)
    (source / "videos").symlink_to(two_movies)
    for name, text in files_of("kpf").items():
        (source / "train" / name.replace("a.r13", "demo_val_000")).write_text(text)

    errors = prepare_videos("custom", source, prepared, splits=("train",), encoding=Encoding(gop=0))

    assert errors == []
    assert (
        load_action_dataset("custom", prepared, "train")["tubes"][:]
        == (load_action_dataset("custom", source, "train")["tubes"][:])
    )


def test_mammalps_videos_that_were_discarded_unseen_are_left_out(tmp_path):
    files = files_of("mammalps")
    document = json.loads(files["demo.json"])
    document["info"]["automatically_discarded"] = True

    content = read(tmp_path, files | {"other.json": document | {"frames": []}})

    assert len(content.videos) == 1
    assert content.ignored == {"videos that were discarded unseen": 1}


# Writing


ROWS = """\
video,{time},x1,y1,x2,y2,label,track_id
demo_val_000.mp4,{0},0.1,0.2,0.25,0.4,walk,7
demo_val_000.mp4,{1},0.2,0.2,0.35,0.45,walk,7
demo_val_000.mp4,{1},0.2,0.2,0.35,0.45,carry "x",7
demo_val_000.mp4,{2},0.3,0.2,0.45,0.5,walk,7
demo_val_000.mp4,{4},0.3,0.2,0.45,0.9,walk,7
demo_val_000.mp4,{1},0.6,0.2,0.8,0.4,stand,0
demo_val_001.mp4,{0},0.5,0.5,1,1,stand,0
"""


def annotated(data_dir: Path) -> set[tuple]:
    """Everything that the rows of a folder say, to a pixel's thousandth."""
    labels, said = load_action_labels("custom", data_dir), set()
    for row in load_action_dataset("custom", data_dir, "train"):
        for tube in row["tubes"]:
            times = [round(row["video_seconds"], 3)] if tube["frames"] is None else tube["frames"]
            for time, box in zip(times, np.round(tube["boxes"], 4).tolist(), strict=True):
                video = Path(row["video"]).name
                said |= {(video, time, tube["track_id"], *box, labels[label]) for label in tube["labels"]}
    return said


@pytest.mark.parametrize(
    ("name", "time"),
    [("cvat", "frame"), ("via3", "timestamp"), ("label_studio", "frame"), ("coco_vid", "frame")],
)
def test_what_is_written_is_read_as_the_same(tmp_path, two_movies, name, time):
    """Somebody with a second action for one frame, and gone for another; VIA has moments, the others frames."""
    for folder in ("before", "after/train"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("before", "after"):
        (tmp_path / folder / "videos").symlink_to(two_movies)
    times = [0, 0.1, 0.2, 0.3, 0.4] if time == "timestamp" else range(5)
    text = ROWS.format(*times, time=time).replace('carry "x"', '"carry ""x"""')
    (tmp_path / "before" / "train.csv").write_text(text)
    output = tmp_path / "after" / "train" / ("written.xml" if name == "cvat" else "written.json")
    arguments = ["--dataset", "custom", "--data_dir", str(tmp_path / "before"), "--output", str(output)]

    assert main(["convert", "--format", name, *arguments]) == 0

    expected = annotated(tmp_path / "before")
    assert len(expected) == 7
    # Numbers of persons from 0 are kept where the format has any.
    assert annotated(tmp_path / "after") == expected
    if name == "cvat":
        # A file for each task.
        written = sorted(path.name for path in output.with_suffix("").iterdir())
        assert written == ["demo_val_000.xml", "demo_val_001.xml"]
    else:
        assert Source(output).json is not None


def test_ava_has_people_at_whole_seconds(tmp_path, two_movies, caplog):
    for folder in ("before", "after/annotations"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("before", "after"):
        (tmp_path / folder / "videos").symlink_to(two_movies)
    (tmp_path / "before" / "train.csv").write_text(
        ROWS.format(0, 0.5, 1, 1.5, 1.6, time="timestamp").replace('"x"', "x")
    )
    output = tmp_path / "after" / "annotations" / "ava_train_v2.2.csv"
    arguments = ["--dataset", "custom", "--data_dir", str(tmp_path / "before"), "--output", str(output)]

    assert main(["convert", "--format", "ava", *arguments]) == 0

    assert "3 of 7 are written" in caplog.text
    expected = {item for item in annotated(tmp_path / "before") if item[1] in (0, 1)}
    output.with_name("ava_action_list.pbtxt").rename(output.with_name("ava_action_list_v2.2.pbtxt"))
    rows = load_action_dataset("ava", tmp_path / "after", "train")
    names = load_action_labels("ava", tmp_path / "after")
    found = {
        (
            Path(row["video"]).name,
            row["video_seconds"],
            tube["track_id"],
            *np.round(tube["boxes"][0], 4).tolist(),
            names[label],
        )
        for row in rows
        for tube in row["tubes"]
        for label in tube["labels"]
    }
    assert found == expected


@pytest.mark.parametrize("write", [write_cvat, write_via3, write_label_studio, write_coco_vid])
def test_nobody_said_and_nothing_that_is_a_class_stay_apart(tmp_path, write):
    tube = {"frames": [2], "boxes": [[0.1, 0.2, 0.3, 0.4]]}
    tubes = [tube | {"track_id": track, "labels": labels} for track, labels in ((1, None), (2, []), (3, [0]))]
    facts = {"width": SIZE[0], "height": SIZE[1], "fps": 10.0, "num_frames": 8}
    row = {"clip_id": "a", "video": "videos/a.mp4", "video_seconds": None, "tubes": tubes} | facts
    (tmp_path / "files").mkdir()

    write(tmp_path / "files" / "a.json", [row | {"annotated_frames": [[0, 8, 4]]}], {0: "run"})

    _, content = read_folder(tmp_path / "files")
    assert [entry.labels for entry in content.entries] == [None, (), ("run",)]
    if write in (write_cvat, write_coco_vid):
        assert list(content.videos["a.mp4"].annotated_frames) == [0, 2, 4]


@pytest.mark.parametrize("write", [write_cvat, write_via3, write_label_studio, write_coco_vid])
def test_regions_in_which_nobody_looked_are_written_and_read(tmp_path, two_movies, write, caplog):
    (tmp_path / "videos").symlink_to(two_movies)
    (tmp_path / "train").mkdir()
    times = {"frames": None} if write is write_via3 else {"frames": [2, 3]}
    boxes = [[0.125, 0.25, 0.5, 0.75]] * (1 if write is write_via3 else 2)
    regions = [[0.5, 0.0, 1.0, 0.5]] * len(boxes)
    tubes = [{"track_id": 1, "labels": [0], "boxes": boxes} | times]
    row = {"clip_id": "demo_val_000", "video": str(two_movies / "demo_val_000.mp4"), "annotated_labels": [0]}
    row |= {"width": 128, "height": 96, "fps": 15.0, "num_frames": 30, "tubes": tubes}
    row |= {"video_seconds": 0.2 if write is write_via3 else None, "ignored": [{"boxes": regions} | times]}

    suffix = "xml" if write is write_cvat else "json"
    write(tmp_path / "train" / f"a.{suffix}", [row], {0: "walk"})

    assert "which classes were looked for: 1 rows" in caplog.text
    (read_row,) = load_action_dataset("custom", tmp_path, "train")
    assert load_action_labels("custom", tmp_path) == {0: "walk"}
    assert [tube["labels"] for tube in read_row["tubes"]] == [[0]]
    (region,) = read_row["ignored"] if write is not write_coco_vid else read_row["ignored"][:1]
    assert region["boxes"][0] == pytest.approx(regions[0], abs=1e-3)
    assert write in (write_via3, write_coco_vid) or region["frames"] == [2, 3]


def test_rows_without_their_video_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="the video of 'a' is missing"):
        write_coco_vid(tmp_path / "a.json", [{"clip_id": "a", "video": None, "tubes": []}], {})
