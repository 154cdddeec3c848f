"""What reading annotations costs: csv of one's own, beside pandas and beside an older commit.

    python benchmarks/annotations.py --rows 100000 --old aaa7d40

CPU seconds and peak memory of one process each, alternating; the median of the rounds.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
HEADER = "video,{},x1,y1,x2,y2,label,track_id\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--kind", choices=("frame", "timestamp", "ava"), default="frame")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--old", metavar="COMMIT", help="commit to compare with, checked out into a temporary folder")
    parser.add_argument("--read", metavar="READER", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(_cost(options.read, options.folder, options.kind)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        _write(folder, options)
        _compare(options, folder, Path(temporary) / "old")


def _compare(options: argparse.Namespace, folder: Path, old: Path) -> None:
    readers = {"pandas": ROOT, "now": ROOT}
    if options.old:
        subprocess.run(["git", "worktree", "add", "--detach", str(old), options.old], cwd=ROOT, check=True)
        readers["old"] = old
    try:
        runs = [
            {name: _run(name, root, folder, options) for name, root in readers.items()} for _ in range(options.rounds)
        ]
    finally:
        if options.old:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    costs = {name: statistics.median(run[name]["seconds"] for run in runs) for name in readers}
    for name, seconds in costs.items():
        memory = max(run[name]["megabytes"] for run in runs)
        print(f"{name:8} {seconds:8.2f} CPU s  {memory:7.0f} MB  {seconds / costs['pandas']:7.1f} x pandas")


def _run(name: str, root: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Read in a process of its own, with the package of a checkout; imports do not count."""
    command = [sys.executable, __file__, "--read", name, "--folder", str(folder), "--kind", options.kind]
    paths = {"PYTHONPATH": str(_package_of(root, folder.parent)), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return json.loads(subprocess.run(command, env=paths, check=True, capture_output=True, text=True).stdout)


def _package_of(root: Path, temporary: Path) -> Path:
    """Return a folder from which a checkout is imported as `classquery`, without installing it."""
    folder = temporary / f"package_{root.name}"
    package = folder / "classquery"
    if not package.is_dir():
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "data").symlink_to(root / "data")
        (package / "configuration").symlink_to(root / "configuration")
    return folder


def _write(folder: Path, options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    per_video = -(-options.rows // options.videos)
    lines = []
    for row in range(options.rows):
        video, number = divmod(row, per_video)
        x, y = rng.random(2) * 0.5
        frame, track = divmod(number, 4)
        time_of = f"{frame}" if options.kind == "frame" else f"{frame * 0.5}"
        box = f"{x:.4f},{y:.4f},{x + 0.3:.4f},{y + 0.4:.4f}"
        if options.kind == "ava":
            lines.append(f"video_{video:04d},{902 + frame:04d},{box},{1 + track % 80},{track}\n")
        else:
            lines.append(f"video_{video:04d}.mp4,{time_of},{box},action {track % 3},{track}\n")
    (folder / "annotations").mkdir(parents=True)
    if options.kind == "ava":
        (folder / "annotations/ava_train_v2.2.csv").write_text("".join(lines))
    else:
        (folder / "train.csv").write_text(HEADER.format(options.kind) + "".join(lines))


def _cost(reader: str, folder: Path, kind: str) -> dict[str, float]:
    path = folder / ("annotations/ava_train_v2.2.csv" if kind == "ava" else "train.csv")
    if reader == "pandas":
        import pandas

        def read() -> None:
            pandas.read_csv(path, header=None if kind == "ava" else "infer")
    else:
        load = _loader(kind)

        def read() -> None:
            load(folder, "train", require_videos=False)

    start = time.process_time()
    read()
    seconds = time.process_time() - start
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _loader(kind: str):
    try:
        from classquery.data.ava import load_ava
        from classquery.data.custom import load_custom
    except ImportError:  # Since the annotations have a folder of their own.
        from classquery.data.annotations.ava import load_ava
        from classquery.data.annotations.custom import load_custom
    return load_ava if kind == "ava" else load_custom


if __name__ == "__main__":
    main()
