"""How long the annotations of AVA's training split take to load: all rows at once, against row by row.

    python benchmarks/annotations.py

Writes a csv with as many rows as `ava_train_v2.2.csv` (837,318), random but of the same form, and reads it both ways
in one process. CPU seconds, so that other jobs of the machine matter less.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np

from classquery.data.annotations.ava import _parse_rows, load_ava


NUM_ROWS, NUM_MOVIES, FIRST_SECOND, LAST_SECOND = 837_318, 235, 902, 1798


def write_annotations(folder: Path, num_rows: int) -> Path:
    """Write people with two or three actions each, spread over all movies and seconds; and empty videos."""
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for movie in range(NUM_MOVIES):
        (folder / "videos" / f"movie{movie:06d}.mp4").touch()
    num_people = num_rows // 5 * 2 + 2
    movies = np.sort(rng.integers(NUM_MOVIES, size=num_people))
    seconds = rng.integers(FIRST_SECOND, LAST_SECOND + 1, size=num_people)
    corners = rng.random((num_people, 2)) * 0.5
    path = folder / "ava_train_v2.2.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        rows = (
            (f"movie{movies[person]:06d}", f"{seconds[person]:04d}", *(f"{c:.3f}" for c in (x, y, x + 0.3, y + 0.4)))
            + (action, person % 5)
            for person, (x, y) in enumerate(corners)
            for action in rng.choice(80, 2 + person % 2, replace=False) + 1
        )
        writer.writerows(row for row, _ in zip(rows, range(num_rows), strict=False))
    return path


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, default=NUM_ROWS)
    num_rows = parser.parse_args().num_rows
    with tempfile.TemporaryDirectory() as folder:
        path = write_annotations(Path(folder), num_rows)
        start = time.process_time()
        keyframes = load_ava(folder, "train")
        loading = time.process_time() - start
        start = time.process_time()
        _parse_rows(path, num_labels=80, movie_start_seconds=900.0)
        one_by_one = time.process_time() - start
    print(f"{num_rows} rows, {len(keyframes)} keyframes, CPU seconds")
    print(f"load_ava, everything            {loading:6.1f}")
    print(f"the csv alone, row by row       {one_by_one:6.1f}   {one_by_one / loading:.1f}x")


if __name__ == "__main__":
    main()
