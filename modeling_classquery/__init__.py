"""ClassQuery: who does what, where and when in a video.

Importing the package registers its classes with transformers' Auto classes.
"""

from pathlib import Path

from transformers import AutoModel, AutoModelForObjectDetection, AutoVideoProcessor

from .configuration_classquery import ClassQueryConfig, ClassQueryViTConfig
from .convert_classquery_checkpoint import convert_original_state_dict
from .modeling_classquery import ClassQueryForVideoActionDetection, ClassQueryModel
from .video_processing_classquery import ClassQueryVideoProcessor


AutoModel.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)
AutoModelForObjectDetection.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)
AutoVideoProcessor.register(ClassQueryConfig, ClassQueryVideoProcessor, exist_ok=True)


def demo_checkpoint() -> str:
    """Folder of the small trained model in the package; it knows the people, balls and kites of the demo movies."""
    return str(Path(__file__).parent / "demo")


def __getattr__(name: str):
    # Detection needs decord and more, which `import classquery` should not wait for.
    if name == "detect_video":
        from classquery.engine.detection import detect_video

        return detect_video
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClassQueryConfig",
    "ClassQueryForVideoActionDetection",
    "ClassQueryModel",
    "ClassQueryVideoProcessor",
    "ClassQueryViTConfig",
    "convert_original_state_dict",
    "demo_checkpoint",
    "detect_video",
]
