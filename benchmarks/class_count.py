"""What the number of classes costs: time and memory of ViT-B on AVA, and what `class_chunk` saves.

    python benchmarks/class_count.py [--classes 80 300 1000] [--chunks 100] [--repetitions 3] [--whole 128 168]

Everything before the decoder is the same for any number of classes, so that it is the decoder alone that runs, on a
keyframe of 16 x 21 cells, as of a clip of 256 x 336 pixels, with 15 actor candidates. With `--whole` it is the whole
detector, on a clip of 16 frames of this height and width. Time is CPU time on one thread, the least of the
repetitions; memory is what a call needs beside weights and inputs. The first line compares queries from words (512
numbers per class) with learned ones, in turns.
"""

import argparse
from collections.abc import Callable

import torch
from measuring import Cost, cost_of
from torch.nn import functional as F

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection
from classquery.modeling_classquery import ClassQueryDecoder, ClassQueryMemory


CELLS, WIDTH = (16, 21), 512
Call = Callable[[], torch.Tensor]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 300, 1000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[100])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--whole", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="run the whole detector")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare_kinds(options.whole, options.repetitions)
    print("| classes | class_chunk | CPU seconds | MB | largest difference |\n|---|---|---|---|---|", flush=True)
    for num_labels in options.classes:
        config, call = make_call(num_labels, "text", options.whole)
        whole = call()
        for chunk in [None, *(chunk for chunk in options.chunks if chunk < num_labels)]:
            config.class_chunk = chunk
            cost = Cost.best([cost_of(call, "cpu") for _ in range(options.repetitions)])
            difference = (call() - whole).abs().max().item()
            seconds, extra = f"{cost.cpu_seconds:.2f}", f"{cost.extra_bytes / 1e6:.0f}"
            print(f"| {num_labels} | {chunk or 'all'} | {seconds} | {extra} | {difference:.0e} |", flush=True)


def compare_kinds(size: list[int] | None, repetitions: int) -> None:
    """Compare 80 classes from words with 80 learned ones."""
    calls = {kind: make_call(80, kind, size)[1] for kind in ("learned", "text")}
    seconds = {kind: [] for kind in calls}
    for _ in range(3 * repetitions):
        for kind, call in calls.items():
            seconds[kind].append(cost_of(call, "cpu").cpu_seconds)
    ratio = min(seconds["text"]) / min(seconds["learned"])
    print(f"80 classes from words take {ratio:.3f} times the CPU time of learned ones\n", flush=True)


def make_call(num_labels: int, kind: str, size: list[int] | None) -> tuple[ClassQueryConfig, Call]:
    """A network with the sizes of ViT-B on AVA and weights at random: its configuration, and what runs it.

    It returns class features of all layers, or logits of the whole detector.
    """
    torch.manual_seed(0)
    config = ClassQueryConfig(num_labels=num_labels, class_queries=kind, text_embedding_size=WIDTH)
    config._attn_implementation = "sdpa"
    if size is None:
        network = ClassQueryDecoder(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)
        words, inputs = network.class_words, make_inputs()
    else:
        network = ClassQueryForVideoActionDetection(config)
        words, inputs = network.model.decoder.class_words, (torch.randn(1, config.num_frames, 3, *size),)
    network.eval().requires_grad_(False)
    if kind == "text":
        words.set_embeddings(F.normalize(torch.randn(num_labels, 1, WIDTH), dim=-1))
    return config, lambda: getattr(network(*inputs), "logits" if size else "class_hidden_states")


def make_inputs() -> tuple[torch.Tensor, ClassQueryMemory]:
    """Boxes and memory of a keyframe."""
    generator = torch.Generator().manual_seed(0)
    num_cells = CELLS[0] * CELLS[1]
    levels = torch.randn(4, 1, num_cells, 256, generator=generator)
    position = torch.randn(1, num_cells, 256, generator=generator)
    boxes = torch.rand(1, 15, 4, generator=generator) * 0.6 + 0.2
    return boxes, ClassQueryMemory.of_levels(levels, position, CELLS, None)


if __name__ == "__main__":
    main()
