"""`python -m classquery.data.metrics` on files of AVA's format, of tubes, and of this project's evaluation."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from test_metrics_frame import brute_force_frame_map, golden_case

from classquery.data.annotations.registry import load_action_dataset
from classquery.data.annotations.schema import AnnotationError
from classquery.data.annotations.tubes import load_jhmdb_21
from classquery.data.metrics import ava_label_ids, video_map
from classquery.data.metrics.__main__ import main
from classquery.data.metrics.records import Record, true_tubes, video_table
from classquery.engine.training.evaluation import FrameScorer, TubeScorer, save_records


LABEL_MAP = 'item {\n  name: "sit"\n  id: 1\n}\nitem {\n  name: "walk"\n  id: 3\n}\n'


@pytest.fixture
def files(tmp_path):
    """Ground truth, detections, excluded keyframes and a label map: what an AVA evaluation is given."""
    contents = {
        "gt.csv": "v,0902,0.1,0.1,0.5,0.9,1,0\nv,0902,0.1,0.1,0.5,0.9,3,0\nv,0903,0.1,0.1,0.5,0.9,3,0\n"
        "v,0904,0.1,0.1,0.5,0.9,1,0\nv,0905\n",
        "det.csv": "v,0902,0.1,0.1,0.5,0.8,1,0.9\nv,0902,0.1,0.1,0.5,0.8,3,0.6\nv,0902,0.5,0.5,0.9,0.9,3,0.7\n"
        "v,0904,0.6,0.6,0.9,0.9,1,0.95\nv,0906,0.6,0.6,0.9,0.9,3,0.99\nv,0902,0.1,0.1,0.5,0.8,2,0.9\n",
        "excluded.csv": "v,0904\n",
        "labels.pbtxt": LABEL_MAP,
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def score(files, *options, detections="det.csv", ground_truth="gt.csv", dataset="ava"):
    """The metrics that the command writes."""
    arguments = ["--dataset", dataset, "--ground_truth", files / ground_truth, "--detections", files / detections]
    main([str(argument) for argument in (*arguments, *options, "--json", files / "result.json")])
    return json.loads((files / "result.json").read_text())


def test_labels_of_the_map_are_scored_and_excluded_keyframes_left_out(files, capsys):
    result = score(files, "--label_map", files / "labels.pbtxt", "--exclude", files / "excluded.csv")

    # "sit" is found. Of two "walk", one is found, behind a detection on a keyframe that is not annotated and another.
    assert result["frame_ap_50"] == {"sit": 1.0, "walk": pytest.approx(1 / 2 * 1 / 3)}
    assert result["frame_map_50"] == pytest.approx((1 + 1 / 6) / 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["sit", "1", "1.0000"]
    assert lines[2].split() == ["walk", "2", "0.1667"]
    assert "frame_map_50 0.5833" in lines


def test_keyframes_that_are_not_annotated_may_be_left_out(files):
    result = score(files, "--label_map", files / "labels.pbtxt", "--annotated_only")

    assert result["frame_ap_50"]["walk"] == pytest.approx(1 / 2 * 1 / 2)
    # In both, the detection on the excluded keyframe, which is annotated, is wrong.
    assert result["frame_ap_50"]["sit"] == pytest.approx(1 / 2 * 1 / 2)


def test_without_a_label_map_the_60_of_ava_are_scored(files):
    result = score(files, "--iou_threshold", "0.5", "0.95")

    assert len(result["frame_ap_50"]) == 60
    assert result["frame_ap_50"]["crouch/kneel"] == pytest.approx(1 / 6)
    assert result["frame_ap_95"]["crouch/kneel"] == 0
    assert result["frame_ap_50"]["stand"] is None


@pytest.mark.parametrize("name", ["ava_pub_a", "ava_pub_b_nogtclass"])
def test_csv_files_score_as_the_reference_evaluator(name, tmp_path):
    detections, ground_truth, expected = golden_case(name)
    ids = set(ava_label_ids())
    with (tmp_path / "det.csv").open("w") as file:
        for frame, box, scores in zip(*detections.values(), strict=True):
            key = ",".join([frame[:-5], frame[-4:], *(f"{corner!r}" for corner in (box / 1000).tolist())])
            file.writelines(f"{key},{label},{float(scores[label - 1])!r}\n" for label in ids)
    with (tmp_path / "gt.csv").open("w") as file:
        for person, (frame, box, labels) in enumerate(zip(*ground_truth.values(), strict=True)):
            key = ",".join([frame[:-5], frame[-4:], *(f"{corner!r}" for corner in (box / 1000).tolist())])
            file.writelines(f"{key},{label + 1},{person}\n" for label in np.flatnonzero(labels))

    assert score(tmp_path)["frame_map_50"] == pytest.approx(expected["mAP@0.5"], abs=1e-9)


def test_official_cap_counts_fifty_rows_of_each_keyframe(tmp_path):
    rng = np.random.default_rng(0)
    left = np.arange(30) / 32
    boxes = np.broadcast_to(np.stack([left, left * 0, left + 1 / 32, left * 0 + 1], axis=1), (2, 30, 4))
    scores = rng.random((2, 30, 3))
    with (tmp_path / "det.csv").open("w") as file:
        for frame, box, label in np.ndindex(scores.shape):
            corners = ",".join(f"{corner!r}" for corner in boxes[frame, box].tolist())
            file.write(f"v,{frame},{corners},{(1, 3, 4)[label]},{scores[frame, box, label].item()!r}\n")
    actors = [
        boxes[0, scores[0, :, 0].argmax()],
        boxes[0, scores[0, :, 1].argmin()],
        boxes[1, scores[1, :, 2].argmin()],
    ]
    with (tmp_path / "gt.csv").open("w") as file:
        for frame, actor, label in zip((0, 0, 1), actors, (1, 3, 4), strict=True):
            file.write(f"v,{frame},{','.join(map(repr, actor.tolist()))},{label}\n")
    capped = scores.copy()
    for of_frame in capped:
        of_frame[of_frame < np.sort(of_frame.ravel())[-50]] = -1
    kept = capped >= 0
    truth = {"frame": [0, 0, 1], "boxes": actors, "labels": np.eye(3)}
    expected = []
    for label in range(3):
        frame, box = np.nonzero(kept[..., label])
        found = {"frame": frame, "boxes": boxes[frame, box], "scores": scores[frame, box, label, None]}
        of_label = truth | {"labels": np.array(truth["labels"])[:, label, None]}
        expected += brute_force_frame_map(found, of_label)["ap_per_label"]

    assert score(tmp_path, "--official_cap")["frame_map_50"] == pytest.approx(np.mean(expected))
    assert score(tmp_path)["frame_map_50"] != pytest.approx(np.mean(expected))


def test_errors_are_one_message(files, monkeypatch):
    (files / "det.csv").write_text("v,0902,0.1,0.1,0.5,0.8,1,17\n")
    arguments = ["--dataset", "ava", "--ground_truth", files / "gt.csv", "--detections", files / "det.csv"]
    monkeypatch.delitem(sys.modules, "classquery.data.metrics.__main__")
    monkeypatch.setattr(sys, "argv", ["classquery.data.metrics", *map(str, arguments)])

    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("classquery.data.metrics", run_name="__main__")

    expected = f"error: 1 problem in {files / 'det.csv'}:\n  row 1: score is 17 but must be in [0, 1]"
    assert stopped.value.code.startswith(expected)


def test_labels_beyond_ava_need_a_label_map(files):
    (files / "det.csv").write_text("v,0902,0.1,0.1,0.5,0.8,81,0.5\n")

    with pytest.raises(ValueError, match=r"label ids \[81\], but AVA has 80: give the --label_map"):
        score(files)


def test_keyframes_that_do_not_meet_are_compared_by_name(files, caplog):
    (files / "det.csv").write_text("w,0902,0.1,0.1,0.5,0.8,1,0.5\n")

    assert score(files)["frame_map_50"] == 0
    assert "no keyframe of the detections has ground truth: compare w,0902 with v,0902" in caplog.text


@pytest.mark.parametrize(
    ("dataset", "option"), [("ava", ("--protocol", "standard")), ("ucf101_24", ("--official_cap",))]
)
def test_options_of_other_data_sets_are_refused(files, dataset, option, capsys):
    with pytest.raises(SystemExit):
        score(files, *option, dataset=dataset)
    assert "--protocol" in capsys.readouterr().err


# Tubes


def jhmdb_pickle(folder: Path) -> Path:
    """Two test videos, one with an actor in all of its frames, one with two who come and go."""

    def tube(first, last, left):
        frames = np.arange(first, last + 1)
        return np.stack([frames, *([left + 0 * frames, 20 + 0 * frames, left + 80 + 0 * frames, 200 + frames])], 1)

    content = {
        "labels": ["sit", "walk"],
        "gttubes": {
            "sit/a": {0: [tube(1, 20, 30).astype(np.float32)]},
            "walk/b": {1: [tube(3, 19, 30).astype(np.float32), tube(1, 16, 180).astype(np.float32)]},
        },
        "nframes": {"sit/a": 20, "walk/b": 24},
        "resolution": {"sit/a": (240, 320), "walk/b": (240, 320)},
        "train_videos": [[]],
        "test_videos": [["sit/a", "walk/b"]],
    }
    path = folder / "JHMDB-GT.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def records_of(rows, seed=0) -> list[Record]:
    """Detections near all tubes, with one box too many, as an evaluation of clips of eight frames keeps them."""
    rng = np.random.default_rng(seed)
    records = []
    for row in rows:
        for start in range(0, row["num_frames"], 8):
            frames = np.arange(start, min(start + 8, row["num_frames"]))
            boxes, true = np.zeros((len(frames), 3, 4), np.float32), np.zeros((len(row["tubes"]), len(frames), 4))
            boxes[:] = [0.7, 0.7, 0.9, 0.9]
            valid = np.zeros(true.shape[:2], bool)
            scores = rng.uniform(0, 0.2, (len(frames), 3, 2)).astype(np.float32)
            actor_scores = rng.uniform(0, 0.6, (len(frames), 3)).astype(np.float32)
            for index, tube in enumerate(row["tubes"]):
                for at, frame in enumerate(frames):
                    if frame in tube["frames"]:
                        box = tube["boxes"][tube["frames"].index(frame)]
                        boxes[at, index], true[index, at], valid[index, at] = box, box, True
                        scores[at, index, tube["labels"][0]] = rng.uniform(0.4, 1)
                        actor_scores[at, index] = 0.9
            boxes += rng.uniform(0, 0.02, boxes.shape)
            labels = np.zeros((len(row["tubes"]), len(frames), 2), np.float32)
            for index, tube in enumerate(row["tubes"]):
                labels[index, :, tube["labels"]] = 1
            records.append(
                {
                    "clip_id": f"{row['clip_id']}_{start:03d}",
                    "video": row["clip_id"],
                    "frame_numbers": frames,
                    "boxes": boxes,
                    "scores": scores,
                    "actor_scores": actor_scores,
                    "true_boxes": true.astype(np.float32),
                    "true_labels": labels,
                    "true_valid": valid,
                }
            )
    return records


@pytest.fixture
def tubes(tmp_path):
    """The annotations and predictions of a small JHMDB-21."""
    rows = load_jhmdb_21(jhmdb_pickle(tmp_path), "validation", require_videos=False)
    records = records_of(rows)
    save_records(records, tmp_path / "eval_predictions.parquet")
    with (tmp_path / "det.csv").open("w") as file:
        for record in records:
            for at, query, label in np.ndindex(record["scores"].shape):
                corners = ",".join(f"{corner!r}" for corner in record["boxes"][at, query].tolist())
                values = (record["scores"][at, query, label].item(), record["actor_scores"][at, query].item())
                frame = record["frame_numbers"][at] + 1
                file.write(f"{record['video']},{frame},{corners},{label + 1},{values[0]!r},{values[1]!r}\n")
    return tmp_path, rows, records


@pytest.mark.parametrize("detections", ["eval_predictions.parquet", "det.csv"])
@pytest.mark.parametrize("protocol", ["standard", "classquery_ucf", "classquery_jhmdb"])
def test_predictions_of_the_script_score_as_in_the_script(tubes, protocol, detections):
    folder, rows, records = tubes
    expected = TubeScorer({0: "sit", 1: "walk"}, rows, protocol, 64)(records)

    result = score(
        folder,
        *("--protocol", protocol, "--shortest_edge", 64),
        dataset="jhmdb_21",
        ground_truth="JHMDB-GT.pkl",
        detections=detections,
    )

    assert 0 < result["video_map_50"] <= 1
    for name in ("frame_map_50", "video_map_20", "video_map_50"):
        assert result[name] == pytest.approx(expected[name], abs=1e-9), name
    for name in ("frame_ap_50", "video_ap_50"):
        for label, value in result[name].items():
            assert value == pytest.approx(expected[f"{name}/{label}"], abs=1e-9)
    assert {"video_map_75", "video_map_50_95"} <= result.keys()


def test_labels_that_multisports_leaves_out_are_not_scored(tubes):
    folder, *_ = tubes
    content = pickle.loads((folder / "JHMDB-GT.pkl").read_bytes())
    (folder / "GT.pkl").write_bytes(pickle.dumps(content | {"labels": ["sit", "basketball save"]}))
    files = {"ground_truth": "GT.pkl", "detections": "eval_predictions.parquet"}

    of_all = score(folder, *("--protocol", "standard"), dataset="jhmdb_21", **files)
    result = score(folder, dataset="multisports", **files)

    assert result["video_map_50_95"] != of_all["video_map_50_95"]
    for kind in ("frame", "video"):
        ap = result[f"{kind}_ap_50"]
        assert ap == {"sit": pytest.approx(of_all[f"{kind}_ap_50"]["sit"]), "basketball save": None}
        assert result[f"{kind}_map_50"] == ap["sit"]


def multisports_pickles(folder, rows, records):
    """The detections of the csv and their linked tubes, as the script of MultiSports wants them."""
    size = np.array([320, 240] * 2)
    places = {name: place for place, name in enumerate(rows["clip_id"])}
    frame_rows = [
        (places[record["video"]], record["frame_numbers"][at] + 1, label, record["scores"][at, query, label])
        + tuple(record["boxes"][at, query] * size)
        for record in records
        for at, query, label in np.ndindex(record["scores"].shape)
    ]
    sizes = dict.fromkeys(places, size)
    linked = video_map(video_table(records, sizes), true_tubes(rows, sizes), protocol="standard")["tubes"]
    tubes = {label: [] for label in range(2)}
    for tube in linked:
        array = np.column_stack([tube["frames"], tube["boxes"]])
        tubes[tube["label"]].append((tube["video"], np.float32(tube["score"]), array))
    (folder / "frame_detections.pkl").write_bytes(pickle.dumps(np.array(frame_rows)))
    (folder / "video_detections.pkl").write_bytes(pickle.dumps(tubes))


def test_predictions_for_the_script_of_multisports_score_as_the_csv(tubes):
    folder, rows, records = tubes
    content = pickle.loads((folder / "JHMDB-GT.pkl").read_bytes())
    (folder / "GT.pkl").write_bytes(pickle.dumps(content))
    (folder / "res").mkdir()
    multisports_pickles(folder / "res", rows, records)
    options = {"dataset": "multisports", "ground_truth": "GT.pkl"}
    expected = score(folder, **options)

    assert expected["video_map_50"] > 0
    # Alone, its boxes are linked as those of the csv; the folder has tubes that are linked already.
    for detections in ("res/frame_detections.pkl", "res"):
        result = score(folder, **options, detections=detections)
        for name in ("frame_map_50", "video_map_20", "video_map_50", "video_map_50_95"):
            assert result[name] == pytest.approx(expected[name], abs=1e-6), (detections, name)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 9, "row 0: video must be a place in the 2 test videos"),
        (1, 0, "row 0: frame must be a whole number from 1"),
        (2, 0.5, "row 0: label must be a whole number from 0"),
        (3, -4.0, r"row 0: score must be in \[0, 1\]"),
        (5, np.nan, "row 0: box must be four finite corners"),
    ],
)
def test_wrong_predictions_of_multisports_are_named(tubes, column, value, message):
    folder, rows, records = tubes
    array = np.array([[0, 1, 0, 0.5, 0, 0, 9, 9]])
    array[0, column] = value
    (folder / "frame_detections.pkl").write_bytes(pickle.dumps(array))

    with pytest.raises(AnnotationError, match=message):
        score(folder, dataset="jhmdb_21", ground_truth="JHMDB-GT.pkl", detections="frame_detections.pkl")


@pytest.mark.parametrize(
    ("tube", "message"),
    [
        (("nobody", 0.5, np.ones((1, 5))), "'nobody' is no test video"),
        (("sit/a", 0.5, np.ones((2, 5))), "its frames must be ascending"),
        (("sit/a", 0.5, [1, 2]), "its array must have rows of frame"),
        (("sit/a", "x", np.ones((1, 5))), "its score must be a number"),
        (("sit/a", 0.5), r"a tube is \(video, score, array\)"),
    ],
)
def test_wrong_tubes_of_multisports_are_named(tubes, tube, message):
    folder, rows, records = tubes
    (folder / "tubes.pkl").write_bytes(pickle.dumps({1: [tube]}))

    with pytest.raises(AnnotationError, match=f"label 1, tube 0: {message}"):
        score(folder, "--tubes", folder / "tubes.pkl", dataset="jhmdb_21", ground_truth="JHMDB-GT.pkl")


def test_report_of_tubes_is_written(tubes, capsys):
    folder, *_ = tubes

    score(
        folder,
        *("--report", folder / "report"),
        dataset="jhmdb_21",
        ground_truth="JHMDB-GT.pkl",
        detections="eval_predictions.parquet",
    )

    assert "see " in capsys.readouterr().out
    analysis = json.loads((folder / "report" / "analysis.json").read_text())
    assert [label["name"] for label in analysis["labels"]] == ["sit", "walk"]


def test_videos_that_are_not_annotated_are_named(tubes):
    folder, *_ = tubes
    (folder / "det.csv").write_text("a,1,0,0,1,1,1,0.5,0.5\n")

    with pytest.raises(ValueError, match="1 videos that are not in the test split, as 'a'.* like 'sit/a'"):
        score(folder, dataset="jhmdb_21", ground_truth="JHMDB-GT.pkl")


def test_published_protocol_of_ucf_needs_actor_scores(tubes):
    folder, *_ = tubes
    (folder / "det.csv").write_text("sit/a,1,0,0,1,1,1,0.5\n")

    with pytest.raises(ValueError, match="must have the keys .*'actor'"):
        score(folder, "--protocol", "classquery_ucf", dataset="jhmdb_21", ground_truth="JHMDB-GT.pkl")


def keyframe_record(time: int, boxes: list, scores: list, **more: np.ndarray) -> dict:
    record = {"clip_id": f"v_{time}", "video": "v", "frame_numbers": np.zeros(1, np.int64)}
    record |= {"boxes": np.float32([boxes]), "scores": np.float32([scores]), "actor_scores": np.ones((1, len(boxes)))}
    truth = {"true_boxes": (0, 1, 4), "true_labels": (0, 1, 2), "true_valid": (0, 1)}
    return record | {name: np.zeros(shape, np.float32) for name, shape in truth.items()} | more


def test_what_predictions_at_keyframes_say_is_unknown_counts_for_nothing(tmp_path):
    """Beside somebody who sits, a person whom nobody labelled is detected first; AP is 1/2 if that is an error."""
    one, other = [0.0, 0.0, 0.4, 0.8], [0.5, 0.1, 0.9, 0.9]
    record = keyframe_record(902, [other, one], [[0.9, 0.0], [0.6, 0.0]])
    labels = "".join(f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in ((1, "sit"), (2, "go")))
    (tmp_path / "labels.pbtxt").write_text(labels)
    (tmp_path / "truth.csv").write_text("v,0902,0.0,0.0,0.4,0.8,1,0\n")
    unknown = {
        "unknown_boxes": np.float32([[other]]),
        "unknown_labels": np.ones((1, 1, 2), bool),
        "unknown_is_region": np.zeros(1, bool),
    }

    found = []
    for number, more in enumerate(({}, unknown)):
        save_records([record | more], tmp_path / f"{number}.parquet")
        options = ("--label_map", tmp_path / "labels.pbtxt", "--report", tmp_path / f"report_{number}")
        found.append(score(tmp_path, *options, ground_truth="truth.csv", detections=f"{number}.parquet"))

    assert [result["frame_map_50"] for result in found] == [0.5, 1.0]
    assert (tmp_path / "report_1").is_dir()


def test_predictions_at_keyframes_score_as_in_the_script(demo_dir, tmp_path):
    rows = load_action_dataset("demo", demo_dir, "validation", movie_start_seconds=0)
    rng = np.random.default_rng(0)
    records = []
    for row in rows:
        true = np.array([tube["boxes"][0] for tube in row["tubes"]], np.float32).reshape(-1, 1, 4)
        labels = np.zeros((len(true), 1, 8), np.float32)
        for index, tube in enumerate(row["tubes"]):
            labels[index, 0, tube["labels"]] = 1
        boxes = np.concatenate([true[:, 0], true[:, 0] * 0.5]) + rng.uniform(0, 0.01, (2 * len(true), 4))
        records.append(
            {
                "clip_id": row["clip_id"],
                "video": row["clip_id"],
                "frame_numbers": np.zeros(1, np.int64),
                "boxes": boxes[None].astype(np.float32),
                "scores": rng.random((1, len(boxes), 8)).astype(np.float32),
                "actor_scores": rng.random((1, len(boxes))).astype(np.float32),
                "true_boxes": true,
                "true_labels": labels,
                "true_valid": np.ones((len(true), 1), bool),
            }
        )
    save_records(records, tmp_path / "eval_predictions.parquet")
    scorer = FrameScorer({index: str(index) for index in range(8)})
    annotations = demo_dir / "annotations"

    result = score(
        tmp_path,
        *("--label_map", next(annotations.glob("*.pbtxt"))),
        *("--exclude", annotations / "ava_val_excluded_timestamps_v2.2.csv"),
        ground_truth=annotations / "ava_val_v2.2.csv",
        detections="eval_predictions.parquet",
    )

    assert result["frame_map_50"] == pytest.approx(scorer(records)["frame_map_50"], abs=1e-9)
    assert result["frame_map_50"] > 0
