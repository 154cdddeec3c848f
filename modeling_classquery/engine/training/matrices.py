"""Muon for the matrices of linear layers, beside another optimizer for all other parameters."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch


# Marks groups of matrices among those of `parameter_groups`.
BY_MUON = "by_muon"


class MuonForMatrices(torch.optim.Optimizer):
    """Two optimizers that are stepped, scheduled and saved as one.

    Muon (K. Jordan, 2024, https://kellerjordan.github.io/posts/muon; arXiv 2502.16982) moves a matrix by its
    orthogonalized momentum: all directions by the same length, however weak their gradient. Updates have the size that
    those of AdamW have (`match_rms_adamw`), so rates and decays mean much the same in both.

    Args:
        groups: Groups of parameters; those with a true `by_muon` hold matrices only.
        of_others: What updates the other groups.
        **arguments: For `of_others`.

    Raises:
        ValueError: If a group of matrices holds anything else, as where FSDP1 or DeepSpeed flatten parameters.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], of_others: type[torch.optim.Optimizer], **arguments: Any):
        # Rates come with the groups; each part fills in the rest of what it needs.
        muon = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
        self._parts = {}
        for by_muon, make in ((True, muon), (False, partial(of_others, **arguments))):
            own = [group for group in groups if group[BY_MUON] == by_muon]
            if own:
                self._parts[by_muon] = make(own)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for by_muon, part in self._parts.items():
            # Loading a state replaces both.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group[BY_MUON] == by_muon]
            part.step()
        return loss
