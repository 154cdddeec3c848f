"""ClassQuery: who does what, where and when in a video.

Importing the package registers its classes with transformers' Auto classes.
"""

import importlib
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection, AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig
from .modeling_classquery import ClassQueryForVideoActionDetection, ClassQueryModel
from .pipeline_classquery import VideoActionDetectionPipeline
from .video_processing_classquery import ClassQueryVideoProcessor


for _config in (ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
AutoModel.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)
AutoModelForObjectDetection.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)
AutoVideoProcessor.register(ClassQueryConfig, ClassQueryVideoProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "video-action-detection",
    pipeline_class=VideoActionDetectionPipeline,
    pt_model=AutoModelForObjectDetection,
    type="multimodal",
)


def demo_checkpoint() -> str:
    """Folder of the small trained model in the package; it knows the people, balls and kites of the demo movies."""
    return str(Path(__file__).parent / "demo")


# Detection needs decord and more, which `import classquery` should not wait for; and what `python -m` runs should not
# be imported before.
_LAZY = {
    "convert_original_state_dict": "classquery.convert_classquery_checkpoint",
    "detect": "classquery.engine.detection.detection",
    "load_detector": "classquery.engine.checkpoint",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
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
