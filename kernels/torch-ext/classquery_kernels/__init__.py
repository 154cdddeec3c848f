"""Implementations of 3-D multi-scale deformable attention and where each of them runs."""

import torch


def implementations() -> dict[str, str]:
    """Name of each implementation and what it runs on here; the model uses the first that fits its tensors."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {"torch": f"plain PyTorch {torch.__version__} on {' and '.join(devices)}"}


__all__ = ["implementations"]
