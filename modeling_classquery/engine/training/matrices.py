"""Muon for the matrices of linear layers, beside another optimizer for all other parameters."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor


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
        muon = partial(Muon, adjust_lr_fn="match_rms_adamw")
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


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`, which updates matrices of one shape together.

    PyTorch 2.14 takes them one by one and in bfloat16 on every device, which is slow for small ones and on a CPU,
    where they are orthogonalized in float32 here. Matrices that are divided among processes are left to it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Update all matrices."""
        matrices = [matrix for group in self.param_groups for matrix in group["params"]]
        if any(isinstance(matrix, DTensor) for matrix in matrices):
            return super().step(closure)
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device, matrix.dtype].append(matrix)
            for matrices in alike.values():
                self._update(matrices, group)
        return None

    def _update(self, matrices: list[torch.Tensor], group: dict[str, Any]) -> None:
        gradients, momentum = [matrix.grad for matrix in matrices], group["momentum"]
        momenta = [self.state[m].setdefault("momentum_buffer", torch.zeros_like(m)) for m in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, momentum))
        directions = orthogonalized(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(ahead.dtype)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, directions.unbind(), alpha=-group["lr"] * 0.2 * max(ahead.shape[1:]) ** 0.5)


def orthogonalized(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Bring the singular values of matrices (n, rows, columns) near 1 by Newton-Schulz steps."""
    linear, cubic, quintic = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    matrices = (matrices.mT if is_tall else matrices).to(torch.float32 if matrices.is_cpu else torch.bfloat16)
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = matrices @ matrices.mT
        matrices = torch.baddbmm(
            matrices, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), matrices, beta=linear
        )
    return matrices.mT if is_tall else matrices
