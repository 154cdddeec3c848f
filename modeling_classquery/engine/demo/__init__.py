"""A web page to drop a video on: what it shows is what `run_action_detection.py --do_predict --tubes` writes."""

from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: help texts do without torch.
if TYPE_CHECKING:
    from classquery.engine.demo.page import VideoPage, build_page, launch, push_space, write_space


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "VideoPage",
    "build_page",
    "launch",
    "push_space",
    "write_space",
]
