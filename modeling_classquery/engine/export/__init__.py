"""Detectors as programs that run without this package: ONNX, for ONNX Runtime and others, and torch.export."""

from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: help texts do without torch.
if TYPE_CHECKING:
    from classquery.engine.export.exporting import (
        INPUTS,
        OUTPUTS,
        ExportedDetector,
        export_detector,
        load_exported,
        sample_by_gathering,
    )
    from classquery.engine.export.options import ExportError, ExportOptions


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "ExportError",
    "ExportOptions",
    "ExportedDetector",
    "INPUTS",
    "OUTPUTS",
    "export_detector",
    "load_exported",
    "sample_by_gathering",
]
