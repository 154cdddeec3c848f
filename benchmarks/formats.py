"""What reading each format of annotations costs, through `load_action_dataset("custom", ...)`.

    python benchmarks/formats.py --boxes 100000

Writes one video and files of all formats with as many boxes, 40 people in every frame, and prints CPU seconds of
reading them, the look into the video among them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from classquery.data.annotations.formats import FORMATS
from classquery.data.annotations.registry import load_action_dataset


WIDTH, HEIGHT, FPS, NUM_PEOPLE = 160, 120, 30, 40
ACTIONS = ("walk", "sit", "wave")
Box = tuple[int, int, int, int, int, int, str]  # Frame, person, corners in pixels, and action.


def boxes(num_boxes: int) -> Iterator[Box]:
    """Yield people who move to and fro, and do another thing every hundred frames."""
    for number in range(num_boxes):
        frame, person = divmod(number, NUM_PEOPLE)
        x, y = 5 + (frame + person) % 80, 2 * person
        yield frame, person, x, y, x + 40, y + 30, ACTIONS[(frame // 100 + person) % 3]


def write_video(path: Path, num_frames: int) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8), format="rgb24")
        for number in range(num_frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def csv(found: list[Box]) -> dict[str, str]:
    rows = (
        f"a.mp4,{frame},{x1 / WIDTH},{y1 / HEIGHT},{x2 / WIDTH},{y2 / HEIGHT},{action},{person}\n"
        for frame, person, x1, y1, x2, y2, action in found
    )
    return {"a.csv": "video,frame,x1,y1,x2,y2,label,track_id\n" + "".join(rows)}


def json_lines(found: list[Box]) -> dict[str, str]:
    rows = (
        {"video": "a.mp4", "frame": frame, "track_id": person, "label": action}
        | {"box": [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT]}
        for frame, person, x1, y1, x2, y2, action in found
    )
    return {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}


def cvat(found: list[Box]) -> dict[str, str]:
    tracks: dict[int, list[str]] = {}
    for frame, person, x1, y1, x2, y2, action in found:
        tracks.setdefault(person, []).append(
            f'<box frame="{frame}" keyframe="1" outside="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}">'
            f'<attribute name="action">{action}</attribute></box>'
        )
    body = "".join(f'<track id="{person}" label="person">{"".join(of)}</track>' for person, of in tracks.items())
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    return {"a.xml": f"<annotations><meta><task>{size}<source>a.mp4</source></task></meta>{body}</annotations>"}


def via3(found: list[Box]) -> dict[str, str]:
    options = dict(enumerate(ACTIONS))
    metadata = {
        f"1_{number}": {"vid": "1", "flg": 0, "z": [round(frame / FPS, 3)], "xy": [2, x1, y1, x2 - x1, y2 - y1]}
        | {"av": {"1": str(person), "2": str(ACTIONS.index(action))}}
        for number, (frame, person, x1, y1, x2, y2, action) in enumerate(found)
    }
    attributes = {
        "1": {"aname": "person", "type": 1, "options": {}},
        "2": {"aname": "action", "type": 4, "options": options},
    }
    video = {"1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""}}
    project = {"project": {}, "config": {}, "attribute": attributes, "file": video, "metadata": metadata}
    return {"a.json": json.dumps(project | {"view": {"1": {"fid_list": ["1"]}}})}


def label_studio(found: list[Box]) -> dict[str, str]:
    people: dict[tuple[int, str], list[dict]] = {}
    for frame, person, x1, y1, _, _, action in found:
        geometry = {"x": x1 / WIDTH * 100, "y": y1 / HEIGHT * 100, "width": 25, "height": 25}
        people.setdefault((person, action), []).append({"frame": frame + 1, "enabled": False} | geometry)
    results = [
        {"id": f"{person}{action}", "type": "videorectangle", "value": {"sequence": sequence, "labels": [action]}}
        for (person, action), sequence in people.items()
    ]
    return {"a.json": json.dumps([{"id": 1, "data": {"video": "a.mp4"}, "annotations": [{"result": results}]}])}


def fiftyone(found: list[Box]) -> dict[str, str]:
    frames: dict[int, list[dict]] = {}
    for frame, person, x1, y1, x2, y2, action in found:
        box = [x1 / WIDTH, y1 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
        frames.setdefault(frame, []).append({"label": action, "bounding_box": box, "index": person})
    documents = [
        {
            "frame_number": frame + 1,
            "_sample_id": "a",
            "ground_truth": {"_cls": "Detections", "detections": detections},
        }
        for frame, detections in frames.items()
    ]
    samples = {"samples": [{"_id": "a", "filepath": "data/a.mp4"}]}
    return {"samples.json": json.dumps(samples), "frames.json": json.dumps({"frames": documents})}


def coco_vid(found: list[Box]) -> dict[str, str]:
    frames = sorted({box[0] for box in found})
    document = {
        "categories": [],
        "videos": [{"id": 1, "name": "a.mp4", "width": WIDTH, "height": HEIGHT}],
        "images": [
            {"id": frame, "video_id": 1, "file_name": f"a/{frame:06d}.jpg", "frame_id": frame} for frame in frames
        ],
        "annotations": [
            {"image_id": frame, "instance_id": person, "bbox": [x1, y1, x2 - x1, y2 - y1], "behaviors": [action]}
            for frame, person, x1, y1, x2, y2, action in found
        ],
    }
    return {"a.json": json.dumps(document)}


def kpf(found: list[Box]) -> dict[str, str]:
    geoms = (
        f"- {{ geom: {{id1: {person}, id0: {n}, ts0: {frame}, ts1: {frame / FPS:.2f}, g0: {x1} {y1} {x2} {y2}, "
        "src: truth } }\n"
        for n, (frame, person, x1, y1, x2, y2, _) in enumerate(found)
    )
    types = (f"- {{ types: {{ id1: {person}, cset3: {{ Person: 1.0 }} }} }}\n" for person in range(NUM_PEOPLE))
    acts = (
        f"- {{ act: {{ act2: {{ {ACTIONS[person % 3]}: 1.0 }}, id2: {person}, timespan: [{{tsr0: [0, 99999]}}], "
        f"actors: [{{ id1: {person} }}] }} }}\n"
        for person in range(NUM_PEOPLE)
    )
    return {"a.geom.yml": "".join(geoms), "a.types.yml": "".join(types), "a.activities.yml": "".join(acts)}


def road(found: list[Box]) -> dict[str, str]:
    frames: dict[str, dict] = {}
    for frame, person, x1, y1, x2, y2, action in found:
        box = [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT]
        annos = frames.setdefault(str(frame + 1), {"annotated": 1, "annos": {}})["annos"]
        annos[f"b{person}"] = {"box": box, "action_ids": [ACTIONS.index(action)], "tube_uid": f"u{person}"}
    videos = {"a": {"split_ids": ["train_1"], "frames": frames}}
    return {"a.json": json.dumps({"all_action_labels": ACTIONS, "action_labels": ACTIONS, "db": videos})}


def vatic(found: list[Box]) -> dict[str, str]:
    rows = (
        f'{person} {x1} {y1} {x2} {y2} {frame} 0 0 1 "Person" "{action}"\n'
        for frame, person, x1, y1, x2, y2, action in found
    )
    return {"a.txt": "".join(rows)}


def mammalps(found: list[Box]) -> dict[str, str]:
    frames: dict[int, list[dict]] = {}
    for frame, person, x1, y1, x2, y2, action in found:
        attributes = {"action": action, "action2": "none"}
        detection = {"track_id": person, "bbox": [x1, y1, x2, y2], "attributes": attributes}
        frames.setdefault(frame, []).append(detection)
    documents = [{"frame_id": frame, "detections": detections} for frame, detections in frames.items()]
    return {"a.json": json.dumps({"info": {"file_path": "a.mp4"}, "frames": documents})}


def ava_kinetics(found: list[Box]) -> dict[str, str]:
    rows = (
        f"a,{frame / FPS:.3f},{x1 / WIDTH},{y1 / HEIGHT},{x2 / WIDTH},{y2 / HEIGHT},{1 + ACTIONS.index(action)}\n"
        for frame, _, x1, y1, x2, y2, action in found
    )
    return {"a.csv": "".join(rows)}


WRITERS: dict[str, Callable[[list[Box]], dict[str, str]]] = {
    writer.__name__: writer
    for writer in (csv, json_lines, cvat, via3, label_studio, fiftyone, coco_vid, kpf, road, vatic, mammalps)
} | {"ava_kinetics": ava_kinetics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=100_000)
    parser.add_argument("--formats", nargs="+", default=[fmt.name for fmt in FORMATS], choices=list(WRITERS))
    options = parser.parse_args()
    found = list(boxes(options.boxes))
    with tempfile.TemporaryDirectory() as temporary:
        video = Path(temporary) / "videos" / "a.mp4"
        write_video(video, found[-1][0] + 1)
        for name in options.formats:
            folder = Path(temporary) / name
            (folder / "train").mkdir(parents=True)
            (folder / "videos").symlink_to(video.parent)
            for file_name, content in WRITERS[name](found).items():
                (folder / "train" / file_name).write_text(content)
            start = time.process_time()
            rows = load_action_dataset("custom", folder, "train")
            seconds = time.process_time() - start
            read = sum(len(tube["boxes"]) for row in rows for tube in row["tubes"])
            print(f"{name:14} {read:10,} boxes {seconds:6.2f} CPU s")


if __name__ == "__main__":
    main()
