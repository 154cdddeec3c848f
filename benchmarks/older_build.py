"""An older commit of this repository as a package beside this one, measured in turns."""

import contextlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def package_of(commit: str) -> Iterator[Path]:
    """Lay the package of a commit out in a temporary folder, to go before all others on Python's path."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "package"
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(source, filter="data")
        layout = re.findall(
            r'^"(classquery[\w.]*)" = "([^"]+)"$', (source / "pyproject.toml").read_text(), re.MULTILINE
        )
        for package, place in sorted(layout):
            shutil.copytree(source / place, target / package.replace(".", "/"), dirs_exist_ok=True)
        yield target


class Worker:
    """A process that measures with one build: it runs a script that answers each line with one of JSON."""

    def __init__(self, script: Path, arguments: Sequence[str], package: Path | None) -> None:
        path = {"PYTHONPATH": str(package)} if package else {}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **path},
        )

    def measure(self) -> dict[str, float]:
        """Measure everything once."""
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.wait()


def compare(commit: str, script: Path, arguments: Sequence[str], num_rounds: int = 5) -> None:
    """Measure both builds in turns and print a row for each figure: medians before and after, and their ratio."""
    with package_of(commit) as package:
        workers = [Worker(script, arguments, place) for place in (package, None)]
        rounds = [[worker.measure() for worker in workers] for _ in range(num_rounds)]
        for worker in workers:
            worker.end()
    print(f"| | {commit} | now | ratio |\n|---|---|---|---|")
    for name in rounds[0][0]:
        before, after = (statistics.median(pair[build][name] for pair in rounds) for build in (0, 1))
        print(f"| {name} | {before:.3g} | {after:.3g} | {after / before:.2f} |")
