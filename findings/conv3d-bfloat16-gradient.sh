#!/usr/bin/env bash
# The gradient of the weights of torch's Conv3d in bfloat16, as under autocast, is wrong on a CPU for small maps.
# Tried on 28 November 2026 with torch 2.14.1 on x86-64 with avx512_bf16 and no AMX. Expected: what float32 gives, to the
# precision of bfloat16. Seen: for 16 to 256 channels of 2x4x6 cells and a kernel of 3x3x3, the first two of the three
# taps in time are wrong in every call, up to 1e37 or NaN; never with oneDNN switched off, nor for 8x16x16 cells.
# Way out: torch.backends.mkldnn.flags(enabled=False) around the backward pass, or float32 for these layers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def wrong(with_onednn, channels=16, calls=20):
    """How many calls give a gradient that is far from that of float32."""
    count = 0
    for seed in range(calls):
        torch.manual_seed(seed)
        layer = torch.nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=False)
        frames = torch.randn(2, channels, 2, 4, 6)
        layer(frames).sum().backward()
        expected, layer.weight.grad = layer.weight.grad, None
        with torch.backends.mkldnn.flags(enabled=with_onednn):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = layer(frames)
            output.float().sum().backward()
        count += not torch.allclose(layer.weight.grad, expected, rtol=0.1, atol=2.0)
    return count


with_onednn, without = wrong(True), wrong(False)
print(f"wrong gradients in 20 calls: {with_onednn} with oneDNN, {without} without")
raise SystemExit(0 if with_onednn and not without else "this has changed")
PYTHON
