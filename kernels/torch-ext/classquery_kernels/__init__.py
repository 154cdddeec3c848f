"""Compiled implementations of 3-D multi-scale deformable attention, and the choice between them and plain PyTorch.

The plain form lives with the model and is the reference; what is here computes the same, faster and in less memory.
It is compiled at the first use, for the machine it runs on, and kept in a cache on disk. Where that is impossible the
plain form runs, and a warning says why, once.
"""

import importlib
from typing import TYPE_CHECKING


# Imported when they are asked for: torch takes seconds, which help texts do without.
if TYPE_CHECKING:
    from . import pixels
    from .choice import (
        check_inputs,
        chosen,
        deformable_attention_3d,
        implementations,
        ms_deform_attn_3d,
        shifts_hsv,
        use_implementation,
    )


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".choice", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "check_inputs",
    "chosen",
    "deformable_attention_3d",
    "implementations",
    "ms_deform_attn_3d",
    "pixels",
    "shifts_hsv",
    "use_implementation",
]
