"""Linear layers that a CPU computes with oneDNN, whose products run nearer to its full rate than those of the BLAS."""

import torch
from torch import nn


_ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


def is_plain_inference(states: torch.Tensor) -> bool:
    """Whether tensors are computed on a CPU at once, without gradients: not in a trace or for a backward pass."""
    return states.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class ClassQueryLinear(nn.Linear):
    """Linear layer."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        is_single = states.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if _ONEDNN_LINEAR is not None and is_single and is_plain_inference(states):
            return _ONEDNN_LINEAR(states, self.weight, self.bias, "none", [], "")
        return super().forward(states)


__all__ = ["ClassQueryLinear", "is_plain_inference"]
