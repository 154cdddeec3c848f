"""Compare the network with goldens of the published one, and print a table: configuration, parameters, deviation.

    python benchmarks/parity.py --goldens DIR [NAME ...]

DIR holds `NAME.json` and `NAME.safetensors`, and `manifest_CONFIG.json` for the full-size ones (2 to 6 GB and up to
three minutes each on two cores). All output tensors of all decoder layers are compared. Exits with 1 if a golden is
missed.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from utils import golden_inputs, golden_model  # noqa: E402


OUTPUTS = {"logits": "pred_logits", "pred_boxes": "pred_boxes", "actor_logits": "pred_logits_b"}


def main() -> None:
    """Compare all goldens asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="all vit_*, csn* and full_* by default")
    arguments = parser.parse_args()
    names = arguments.names or sorted(
        path.stem for pattern in ("vit_*", "csn*", "full_*") for path in arguments.goldens.glob(f"{pattern}.json")
    )
    if not names:
        parser.error(f"no goldens in {arguments.goldens}")
    print("| golden | parameters | largest deviation | tolerance | of the allowed |\n|---|---|---|---|---|")
    shares = [compare(arguments.goldens, name) for name in names]
    sys.exit(int(max(shares) > 1))


def compare(folder: Path, name: str) -> float:
    """Print the row of one golden and return its worst deviation as a share of the tolerance there."""
    facts, expected = json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")
    if "state_dict" not in facts:
        manifest = json.loads((folder / f"manifest_{facts['reference_config']}.json").read_text())
        facts["state_dict"] = {key: tensor["shape"] for key, tensor in manifest["keys"].items()}
    model = golden_model(facts)
    with torch.no_grad():
        outputs = model(**golden_inputs(facts))
    atol, rtol = facts["suggested"]["atol"], facts["suggested"]["rtol"]
    deviation, share = 0.0, 0.0
    layers = {"": outputs} | {f"aux{i}.": layer for i, layer in enumerate(outputs.auxiliary_outputs)}
    for prefix, layer in layers.items():
        for ours, published in OUTPUTS.items():
            reference = expected[prefix + published]
            difference = (layer[ours].view_as(reference) - reference).abs()
            deviation = max(deviation, difference.max().item())
            share = max(share, (difference / (atol + rtol * reference.abs())).max().item())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"| {name} | {num_parameters:,} | {deviation:.1e} | {atol:.1e} | {share:.0%} |", flush=True)
    return share


if __name__ == "__main__":
    main()
