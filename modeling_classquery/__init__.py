"""ClassQuery: who does what, where and when in a video.

Importing the package registers its classes with transformers' Auto classes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from classquery import _registration
from classquery._lazy import lazily


_registration.install()


def demo_checkpoint() -> str:
    """Folder of the small trained model in the package; it knows the people, balls and kites of the demo movies."""
    return str(Path(__file__).parent / "demo")


# Imported when they are asked for: torch and transformers take seconds, which commands and data do without.
if TYPE_CHECKING:
    from classquery._version import __version__
    from classquery.configuration_classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig
    from classquery.conversion_classquery import convert_original_state_dict
    from classquery.engine.checkpoint import load_detector
    from classquery.engine.detection.detection import detect
    from classquery.engine.training.trainer import ActionDetectionTrainer
    from classquery.modeling_classquery import ClassQueryForVideoActionDetection, ClassQueryModel
    from classquery.pipeline_classquery import VideoActionDetectionPipeline
    from classquery.video_processing_classquery import ClassQueryVideoProcessor


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "__version__",
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
