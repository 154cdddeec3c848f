"""Compare the network with goldens of the published one, and print a table: configuration, parameters, deviation.

    python benchmarks/parity.py --goldens DIR [NAME ...] [--device cuda]

DIR holds `NAME.json` and `NAME.safetensors`, and `manifest_CONFIG.json` for the full-size ones (2 to 6 GB and up to
three minutes each on two cores). Of the network, all output tensors of all decoder layers are compared; of the
operator (`op_*`), the output and all gradients. Goldens of the criterion are compared by
tests/test_criterion_goldens.py, where the quirks that explain a difference are named. Exits with 1 if a golden is
missed.

On a GPU convolutions are told not to round to TF32, as PyTorch lets them.
"""

import argparse
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from utils import golden_inputs, golden_model, largest_deviation, load_golden

from classquery.ops_classquery import ms_deform_attn_3d


KINDS = ("vit_", "csn", "full_", "op_")


def main() -> None:
    """Compare all goldens asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="all vit_*, csn*, full_* and op_* by default")
    parser.add_argument("--device", default="cpu", help="of the network and the operator")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    names = arguments.names or sorted(path.stem for kind in KINDS for path in arguments.goldens.glob(f"{kind}*.json"))
    unknown = [name for name in names if not name.startswith(KINDS)]
    if unknown or not names:
        parser.error(f"no goldens of the network or the operator in {arguments.goldens}: {', '.join(unknown)}")
    print("| golden | parameters | largest deviation | tolerance | of the allowed |\n|---|---|---|---|---|")
    compared = {name: compare_operator if name.startswith("op_") else compare for name in names}
    shares = [compare_golden(arguments.goldens, name, arguments.device) for name, compare_golden in compared.items()]
    # So that a NaN is missed, too.
    sys.exit(int(not all(share <= 1 for share in shares)))


def compare(folder: Path, name: str, device: str) -> float:
    """Print the row of one golden and return its worst deviation as a share of the tolerance there."""
    facts, expected = load_golden(name, folder)
    model = golden_model(facts).to(device)
    inputs = {key: tensor.to(device) for key, tensor in golden_inputs(facts).items()}
    with torch.no_grad():
        deviation, share = largest_deviation(model(**inputs), facts, expected)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"| {name} | {num_parameters:,} | {deviation:.1e} | {facts['suggested']['atol']:.1e} | {share:.0%} |",
        flush=True,
    )
    return share


def compare_operator(folder: Path, name: str, device: str) -> float:
    """The same for the operator in float32; gradients by location only where they are unique."""
    facts, tensors = load_golden(name, folder)
    tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
    inputs = [tensors[key].float().requires_grad_() for key in ("value", "sampling_locations", "attention_weights")]
    output = ms_deform_attn_3d(inputs[0], [tuple(shape) for shape in facts["shapes_thw"]], *inputs[1:])
    output.backward(tensors["grad_output"].float())
    unique = ~tensors["loc_grad_not_unique"].bool()
    pairs = {
        "output": (output.detach(), tensors["output"]),
        "grad_value": (inputs[0].grad, tensors["grad_value"]),
        "grad_loc": (inputs[1].grad[unique], tensors["grad_sampling_locations"][unique]),
        "grad_w": (inputs[2].grad, tensors["grad_attention_weights"]),
    }
    tolerances, rtol = facts["suggested"]["atol_fp32"], facts["suggested"]["rtol"]
    differences = {key: (ours.double() - reference).abs() for key, (ours, reference) in pairs.items()}
    deviation = torch.stack([difference.max() for difference in differences.values()]).max()
    share = torch.stack(
        [(differences[k] / (tolerances[k] + rtol * pairs[k][1].abs())).max() for k in differences]
    ).max()
    print(f"| {name} | | {deviation:.1e} | {min(tolerances.values()):.1e} | {share:.0%} |", flush=True)
    return share.item()


if __name__ == "__main__":
    main()
