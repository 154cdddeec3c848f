"""Processor time that an import or a help text takes before anything is done, beside an older commit.

    python benchmarks/startup.py [--against aaa7d40] [--rounds 5]

Every command runs in a process of its own, in turns with the older commit; both builds are those of commits, laid out
in temporary folders. The median counts. A bare `python -c pass` is the floor; the command `classquery` is new.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from older_build import package_of

from classquery.cli import commands


HELPS = (
    "data.metrics",
    "data.demo",
    "convert_classquery_checkpoint",
    "engine.export",
    "engine.sharing",
    "engine.demo",
    "kernels",
)
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import classquery": ["-c", "import classquery"],
    "python -m classquery.data --help": ["-m", "classquery.data", "--help"],
    "python -m classquery.data check --help": ["-m", "classquery.data", "check", "--help"],
    **{f"python -m classquery.{name} --help": ["-m", f"classquery.{name}", "--help"] for name in HELPS},
}
NEW_COMMANDS = {f"classquery {name} --help": ["-m", "classquery", name, "--help"] for name in commands.COMMANDS}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="aaa7d40", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with package_of(options.against) as old, package_of("HEAD") as new:
        _print_table(old, new, options.rounds)


def _print_table(old: Path, new: Path, rounds: int) -> None:
    print("| CPU seconds, median | before | now | ratio |\n|---|---|---|---|")
    for title, command in COMMANDS.items():
        both = [[_cpu_seconds(command, site) for site in (old, new)] for _ in range(rounds)]
        before, now = (statistics.median(seconds) for seconds in zip(*both, strict=True))
        print(f"| {title} | {before:.2f} | {now:.2f} | {now / before:.3f} |", flush=True)
    for title, command in NEW_COMMANDS.items():
        now = statistics.median(_cpu_seconds(command, new) for _ in range(rounds))
        print(f"| {title} | – | {now:.2f} | – |", flush=True)


def _cpu_seconds(command: Sequence[str], site: Path) -> float:
    """User and system time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What is installed otherwise comes after this.
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, *command], cwd=site, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
