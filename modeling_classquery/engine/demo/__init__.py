"""A web page to drop a video on: what it shows is what `run_action_detection.py --do_predict --tubes` writes."""

import importlib


# Loaded when they are used: help texts do without torch.
_LAZY = {
    "VideoPage": "page",
    "build_page": "page",
    "launch": "page",
    "push_space": "page",
    "write_space": "page",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "VideoPage",
    "build_page",
    "launch",
    "push_space",
    "write_space",
]
