#!/usr/bin/env bash
# Accelerate's wrapping by size for FSDP2 chooses a ModuleList once its layers together are large enough, and not the
# layers; fully_shard of PyTorch then refuses it, because a list has no forward pass. So "size_based_wrap", which works
# with FSDP1, stops with FSDP2 for about every model that keeps its layers in a list.
# Tried on 28 November 2026 with accelerate 1.15.0 and torch 2.14.1, one gloo process on a CPU. Expected: lists are
# passed over, as PyTorch's own policy for FSDP1 does by default. Seen: the list is chosen, and a ValueError.
# Way out: wrap by class ("transformer_based_wrap" with the classes of the layers).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 accelerate==1.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Stack(nn.Module):
    """Four layers of 4,160 parameters each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return states


model = Stack()
plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=5000
)
is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
chosen = is_wrapped(model.layers), is_wrapped(model.layers[0])
with tempfile.NamedTemporaryFile() as file:
    dist.init_process_group("gloo", init_method=f"file://{file.name}.store", rank=0, world_size=1)
    try:
        fully_shard(model.layers, mesh=init_device_mesh("cpu", (1,)))
        outcome = "sharded"
    except ValueError as error:
        outcome = f"ValueError: {str(error).splitlines()[0]}"
    dist.destroy_process_group()
print("chosen, list and layer:", chosen, "|", outcome)
same_as_seen = chosen == (True, False) and "containers" in outcome
raise SystemExit(0 if same_as_seen else "this has changed")
PYTHON
