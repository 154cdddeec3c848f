"""Results in a window of the desktop, where there is one."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


logger = logging.getLogger(__name__)

# The first that is there, of each video.
_SHOWN = ("annotated.mp4", "preview.png")


def show_results(folders: Sequence[Path]) -> None:
    """Open what was drawn of each video in the program that the desktop has for it; without a desktop, say so.

    Args:
        folders: Those of the results of videos.
    """
    drawn = [next((folder / name for name in _SHOWN if (folder / name).is_file()), None) for folder in folders]
    for path in filter(None, drawn):
        if not open_window(path):
            logger.warning(f"there is no window to show it in here: {path}")


def open_window(path: Path) -> bool:
    """Open a file with the program that the desktop has for it, and return whether there is a desktop."""
    if sys.platform == "win32":
        os.startfile(path)
        return True
    is_mac = sys.platform == "darwin"
    if not is_mac and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        # Not waited for: the program outlives the command.
        subprocess.Popen(["open" if is_mac else "xdg-open", path], start_new_session=True, **quiet)
    except FileNotFoundError:
        return False
    return True
