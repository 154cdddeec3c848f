#!/usr/bin/env bash
# torch.optim.Muon computes the direction of every update in bfloat16, whatever the type of the parameter and on every
# device: a matrix in float64 moves by eight bits of precision, and two gradients that differ by less than that move it
# alike. All other optimizers of torch.optim compute in the type of the parameter, and the documentation of Muon does
# not speak of it.
# Tried on 28 November 2026 with torch 2.14.1 on a CPU. Expected: updates of a float64 matrix that agree with the same
# Newton-Schulz steps in float64 to about 1e-12. Seen: they differ by more than a thousandth of the largest entry, and
# every entry of the direction is a number of bfloat16.
# Way out: orthogonalize in the wanted type with a step of one's own, which on a CPU is also quicker for small matrices.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
parameter = torch.nn.Parameter(torch.zeros(48, 96, dtype=torch.float64))
parameter.grad = torch.randn(48, 96, dtype=torch.float64)
# With a rate of 1 and no decay, a parameter that was zero is minus the direction, and the first momentum only scales
# the gradient.
torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0).step()
direction = -parameter.detach()

expected = parameter.grad / parameter.grad.norm()
for _ in range(5):
    gram = expected @ expected.T
    expected = 3.4445 * expected + (-4.775 * gram + 2.0315 * gram @ gram) @ expected
difference = ((direction - expected).abs().max() / expected.abs().max()).item()
is_bfloat16 = torch.equal(direction, direction.bfloat16().double())
print(f"largest difference {difference:.1e} of the largest entry, all entries bfloat16: {is_bfloat16}")
raise SystemExit(0 if difference > 1e-3 and is_bfloat16 else "this has changed")
PYTHON
