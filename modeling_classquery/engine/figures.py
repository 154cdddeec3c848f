"""matplotlib, where it is installed, without its state and windows."""

import importlib.util
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def can_draw_charts() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def figure_class() -> type["Figure"]:
    """Import the class of figures.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if not can_draw_charts():
        raise ImportError("charts need matplotlib: pip install classquery[demo]")
    from matplotlib.figure import Figure

    return Figure
