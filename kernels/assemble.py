"""Lay the kernels out as the Hub's package `kernels` loads them: `python kernels/assemble.py FOLDER`.

Nothing is compiled: the Python files compile the sources beside them where they run. So one variant for each type of
device serves all versions of PyTorch and Python, as kernel-builder makes it of build.toml.
"""

import json
import shutil
import sys
from pathlib import Path


ROOT = Path(__file__).parent
# As in build.toml, which kernel-builder reads; a test compares them.
NAME, VERSION, LICENSE, BACKENDS = "classquery-kernels", 1, "Apache-2.0", ("cpu", "cuda")
ENDINGS = (".py", ".cpp", ".cu", ".h")


def assemble(folder: Path) -> None:
    """Write `build/torch-cpu` and `build/torch-cuda` into a folder.

    Raises:
        FileExistsError: If they are there.
    """
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(ROOT / "torch-ext" / "classquery_kernels", variant, ignore=_left_out)
        metadata = {
            "name": NAME,
            "id": f"_classquery_kernels_{backend}_{VERSION}",
            "version": VERSION,
            "license": LICENSE,
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def _left_out(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name != "csrc" and not name.endswith(ENDINGS)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    assemble(Path(sys.argv[1]))
