"""Detectors as programs that run without this package: ONNX, for ONNX Runtime and others, and torch.export."""

import importlib


# Loaded when they are used: help texts do without torch.
_LAZY = {
    "ExportError": "options",
    "ExportOptions": "options",
    "ExportedDetector": "exporting",
    "INPUTS": "exporting",
    "OUTPUTS": "exporting",
    "export_detector": "exporting",
    "load_exported": "exporting",
    "sample_by_gathering": "exporting",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


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
