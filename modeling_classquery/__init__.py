"""ClassQuery: who does what, where and when in a video."""

from transformers import AutoModel, AutoModelForObjectDetection

from .configuration_classquery import ClassQueryConfig, ClassQueryViTConfig
from .convert_classquery_checkpoint import convert_original_state_dict
from .modeling_classquery import ClassQueryForVideoActionDetection, ClassQueryModel


AutoModel.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)
AutoModelForObjectDetection.register(ClassQueryConfig, ClassQueryForVideoActionDetection, exist_ok=True)

__all__ = [
    "ClassQueryConfig",
    "ClassQueryForVideoActionDetection",
    "ClassQueryModel",
    "ClassQueryViTConfig",
    "convert_original_state_dict",
]
