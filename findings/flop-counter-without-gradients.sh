#!/usr/bin/env bash
# FlopCounterMode of torch stops under torch.no_grad() with an AssertionError where a module is given a parameter that
# was expanded or indexed, as learned queries are; with gradients enabled the same model is counted.
# Tried on 28 November 2026 with torch 2.14.1 on a CPU. Expected: the same count either way, since a forward pass has
# the same operations. Seen: "Expected gradient function to be set", from the hook that tracks modules.
# Way out: count with gradients enabled, or after requires_grad_(False).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Decoder(nn.Module):
    """A layer over learned queries, one row of them for each clip of a batch."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 8))
        self.layer = nn.Linear(8, 8)

    def forward(self, batch_size):
        return self.layer(self.queries.expand(batch_size, -1, -1))


def count(model):
    with FlopCounterMode(display=False) as counter:
        model(3)
    return counter.get_total_flops()


model = Decoder()
with_gradients = count(model)
with torch.no_grad():
    try:
        without = count(model)
    except AssertionError as error:
        without = f"AssertionError: {error}"
frozen = count(model.requires_grad_(False))
print("with gradients:", with_gradients, "| under no_grad:", without, "| frozen:", frozen)
same_as_seen = with_gradients == frozen == 2 * 3 * 4 * 8 * 8 and "gradient function" in str(without)
raise SystemExit(0 if same_as_seen else "this has changed")
PYTHON
