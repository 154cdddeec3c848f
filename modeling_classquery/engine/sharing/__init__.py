"""Sharing a trained detector on the Hub: its card, written from what was measured, and its upload."""

from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: help texts do without torch.
if TYPE_CHECKING:
    from classquery.engine.sharing.pushing import (
        SHARED_FILES,
        SharingError,
        push_folder,
        push_run,
        require_token,
        write_card_of_run,
        write_model_card,
    )


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "SHARED_FILES",
    "SharingError",
    "push_folder",
    "push_run",
    "require_token",
    "write_card_of_run",
    "write_model_card",
]
