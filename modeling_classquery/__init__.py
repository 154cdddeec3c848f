"""ClassQuery: who does what, where and when in a video.

Importing the package registers its classes with transformers' Auto classes.
"""

import importlib
from pathlib import Path

from . import _registration


_registration.install()


def demo_checkpoint() -> str:
    """Folder of the small trained model in the package; it knows the people, balls and kites of the demo movies."""
    return str(Path(__file__).parent / "demo")


# Imported when they are asked for: torch and transformers take seconds, which commands and data do without.
_LAZY = {
    "ActionDetectionTrainer": "engine.training.trainer",
    "ClassQueryCSNConfig": "configuration_classquery",
    "ClassQueryConfig": "configuration_classquery",
    "ClassQueryForVideoActionDetection": "modeling_classquery",
    "ClassQueryModel": "modeling_classquery",
    "ClassQueryVideoProcessor": "video_processing_classquery",
    "ClassQueryViTConfig": "configuration_classquery",
    "VideoActionDetectionPipeline": "pipeline_classquery",
    "convert_original_state_dict": "conversion_classquery",
    "detect": "engine.detection.detection",
    "load_detector": "engine.checkpoint",
}


def __getattr__(name: str):
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("classquery")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


__all__ = [
    "ActionDetectionTrainer",
    "ClassQueryCSNConfig",
    "ClassQueryConfig",
    "ClassQueryForVideoActionDetection",
    "ClassQueryModel",
    "ClassQueryVideoProcessor",
    "ClassQueryViTConfig",
    "VideoActionDetectionPipeline",
    "convert_original_state_dict",
    "demo_checkpoint",
    "detect",
    "load_detector",
]
