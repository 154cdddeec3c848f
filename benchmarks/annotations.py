"""What reading annotations costs: csv of one's own, beside pandas and beside an older commit.

    python benchmarks/annotations.py --rows 100000 --old aaa7d40

CPU seconds and peak memory of one process each, alternating; the median of the rounds.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from older_build import package_of


HEADER = "video,{},x1,y1,x2,y2,label,track_id\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--kind", choices=("frame", "timestamp", "ava"), default="frame")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--old", metavar="COMMIT", help="commit to compare with, laid out in a temporary folder")
    parser.add_argument("--read", metavar="READER", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(_cost(options.read, options.folder, options.kind)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options)
        _compare(options, Path(folder))


def _compare(options: argparse.Namespace, folder: Path) -> None:
    commits = {"pandas": "HEAD", "now": "HEAD"} | ({"old": options.old} if options.old else {})
    with contextlib.ExitStack() as packages:
        readers = {name: packages.enter_context(_data_package_of(commit)) for name, commit in commits.items()}
        runs = [
            {name: _run(name, site, folder, options) for name, site in readers.items()} for _ in range(options.rounds)
        ]
    costs = {name: statistics.median(run[name]["seconds"] for run in runs) for name in readers}
    for name, seconds in costs.items():
        memory = max(run[name]["megabytes"] for run in runs)
        print(f"{name:8} {seconds:8.2f} CPU s  {memory:7.0f} MB  {seconds / costs['pandas']:7.1f} x pandas")


@contextlib.contextmanager
def _data_package_of(commit: str) -> Iterator[Path]:
    """Lay out the package of a commit, which imports nothing of the model."""
    with package_of(commit) as site:
        (site / "classquery" / "__init__.py").write_text("")
        yield site


def _run(name: str, site: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Read in a process of its own, with the package of a commit; imports do not count."""
    command = [sys.executable, __file__, "--read", name, "--folder", str(folder), "--kind", options.kind]
    paths = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return json.loads(subprocess.run(command, env=paths, check=True, capture_output=True, text=True).stdout)


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
