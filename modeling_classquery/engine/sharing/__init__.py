"""Sharing a trained detector on the Hub: its card, written from what was measured, and its upload."""

import importlib


# Loaded when they are used: help texts do without torch.
_LAZY = {
    "SHARED_FILES": "pushing",
    "SharingError": "pushing",
    "push_folder": "pushing",
    "push_run": "pushing",
    "require_token": "pushing",
    "write_card_of_run": "pushing",
    "write_model_card": "pushing",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "SHARED_FILES",
    "SharingError",
    "push_folder",
    "push_run",
    "require_token",
    "write_card_of_run",
    "write_model_card",
]
