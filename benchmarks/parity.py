"""Compare the network with goldens of the published one, and print a table: configuration, parameters, deviation.

    python benchmarks/parity.py --goldens DIR [NAME ...]

DIR holds `NAME.json` and `NAME.safetensors`, and `manifest_CONFIG.json` for the full-size ones (2 to 6 GB and up to
three minutes each on two cores). All output tensors of all decoder layers are compared. Exits with 1 if a golden is
missed.
"""

import argparse
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from utils import golden_inputs, golden_model, largest_deviation, load_golden  # noqa: E402


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
    facts, expected = load_golden(name, folder)
    model = golden_model(facts)
    with torch.no_grad():
        deviation, share = largest_deviation(model(**golden_inputs(facts)), facts, expected)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"| {name} | {num_parameters:,} | {deviation:.1e} | {facts['suggested']['atol']:.1e} | {share:.0%} |",
        flush=True,
    )
    return share


if __name__ == "__main__":
    main()
