"""What the network costs, in CPU seconds of one thread; `model.py --against COMMIT` runs it.

It answers each line of its input with a line of JSON: a clip of AVA's size through ViT-B, what its matrix products
alone would take at the rate of one large product, and a batch of the demo forwards and backwards. It runs with this
build of the package and with older ones.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection
from classquery.configuration import load_recipe


LARGE = 4096


def main() -> None:
    """Measure once for each line of the input."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(ClassQueryConfig()).eval().requires_grad_(False)
    clip = torch.randn(1, 16, 3, 256, 340)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    for _ in sys.stdin:
        figures = {
            "AVA ViT-B, 16x256x340": cpu_seconds(lambda: model(clip)),
            "of these at the rate of a large product": counter.get_total_flops() / rate_of_a_large_product(),
            "demo, training step": cpu_seconds(demo_step(), 10),
            "peak of memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(figures), flush=True)


def cpu_seconds(step: Callable[[], object], repetitions: int = 1) -> float:
    """Of a call, the mean of several."""
    start = time.process_time()
    for _ in range(repetitions):
        step()
    return (time.process_time() - start) / repetitions


def rate_of_a_large_product() -> float:
    """Operations per second of a product of two square matrices."""
    matrix = torch.randn(LARGE, LARGE)
    return 2 * LARGE**3 / cpu_seconds(lambda: matrix @ matrix)


def demo_step() -> Callable[[], None]:
    """A batch of the demo forwards and backwards."""
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**load_recipe("demo").model, num_labels=8)).train()
    label = {
        "boxes": torch.tensor([[0.3, 0.5, 0.2, 0.6], [0.7, 0.5, 0.3, 0.8]])[:, None],
        "class_labels": torch.eye(8)[:2, None],
        "valid": torch.ones(2, 1, dtype=torch.bool),
        "frame_mask": torch.ones(1, dtype=torch.bool),
    }
    clips = torch.randn(16, 8, 3, 48, 64)
    return lambda: model(clips, labels=[label] * 16).loss.backward()


if __name__ == "__main__":
    main()
