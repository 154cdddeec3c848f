"""What Accelerate leaves open where it divides a model among processes (FSDP2)."""

import functools

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy


def wrap_by_class(accelerator: Accelerator, model: nn.Module) -> None:
    """Turn wrapping by size into wrapping by class, before the model is prepared.

    Accelerate would wrap every large module, lists of layers among them, which PyTorch refuses because they have no
    forward pass. Wrapped instead is every class of which all modules of the model are larger than `min_num_params`.
    """
    plugin: FullyShardedDataParallelPlugin | None = getattr(accelerator.state, "fsdp_plugin", None)
    policy = None if plugin is None or plugin.fsdp_version < 2 else plugin.auto_wrap_policy
    policy = policy.func if isinstance(policy, functools.partial) else policy
    if policy is not size_based_auto_wrap_policy:
        return
    sizes: dict[type, int] = {}
    for module in list(model.modules())[1:]:
        if type(module).forward is not nn.Module.forward:
            size = sum(parameter.numel() for parameter in module.parameters())
            sizes[type(module)] = min(size, sizes.get(type(module), size))
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = [
        kind.__name__ for kind, size in sizes.items() if size > plugin.min_num_params
    ]
