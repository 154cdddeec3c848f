"""What the number of classes costs: time and memory of the decoder of ViT-B on AVA, and what `class_chunk` saves.

    python benchmarks/class_count.py [--classes 80 300 1000] [--chunks 100] [--repetitions 3]

Everything before the decoder is the same for any number of classes. It reads a keyframe of 16 x 21 cells with 15 actor
candidates. Time is CPU time on one thread, the least of the repetitions; memory is what a call needs beside weights
and inputs. The first line compares queries from words (512 numbers per class) with learned ones, in turns.
"""

import argparse

import torch
from measuring import cost_of
from torch.nn import functional as F

from classquery import ClassQueryConfig
from classquery.modeling_classquery import ClassQueryDecoder, ClassQueryMemory


SIZE, WIDTH = (16, 21), 512


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 300, 1000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[100])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare_kinds(options.repetitions)
    print("| classes | class_chunk | CPU seconds | MB | largest difference |\n|---|---|---|---|---|", flush=True)
    for num_labels in options.classes:
        decoder, inputs = make_decoder(num_labels, "text"), make_inputs()
        whole = run(decoder, inputs)
        for chunk in [None, *(chunk for chunk in options.chunks if chunk < num_labels)]:
            decoder.config.class_chunk = chunk
            costs = [cost_of(lambda: run(decoder, inputs), "cpu") for _ in range(options.repetitions)]  # noqa: B023
            seconds, extra = (min(getattr(cost, name) for cost in costs) for name in ("cpu_seconds", "extra_bytes"))
            difference = (run(decoder, inputs) - whole).abs().max().item()
            print(
                f"| {num_labels} | {chunk or 'all'} | {seconds:.2f} | {extra / 1e6:.0f} | {difference:.0e} |",
                flush=True,
            )


def compare_kinds(repetitions: int) -> None:
    """Compare 80 classes from words with 80 learned ones."""
    inputs, kinds = make_inputs(), {kind: make_decoder(80, kind) for kind in ("learned", "text")}
    seconds = {kind: [] for kind in kinds}
    for _ in range(3 * repetitions):
        for kind, decoder in kinds.items():
            seconds[kind].append(cost_of(lambda: run(decoder, inputs), "cpu").cpu_seconds)  # noqa: B023
    ratio = min(seconds["text"]) / min(seconds["learned"])
    print(f"80 classes from words take {ratio:.3f} times the CPU time of learned ones\n", flush=True)


def make_decoder(num_labels: int, kind: str) -> ClassQueryDecoder:
    """A decoder with the sizes of ViT-B on AVA, and weights at random."""
    torch.manual_seed(0)
    config = ClassQueryConfig(num_labels=num_labels, class_queries=kind, text_embedding_size=WIDTH)
    config._attn_implementation = "sdpa"
    decoder = ClassQueryDecoder(config).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_uniform_(parameter)
    if kind == "text":
        decoder.class_words.set_embeddings(F.normalize(torch.randn(num_labels, 1, WIDTH), dim=-1))
    return decoder


def make_inputs() -> tuple[torch.Tensor, ClassQueryMemory]:
    """Boxes and memory of a keyframe."""
    generator = torch.Generator().manual_seed(0)
    num_cells = SIZE[0] * SIZE[1]
    levels = torch.randn(4, 1, num_cells, 256, generator=generator)
    position = torch.randn(1, num_cells, 256, generator=generator)
    boxes = torch.rand(1, 15, 4, generator=generator) * 0.6 + 0.2
    return boxes, ClassQueryMemory.of_levels(levels, position, SIZE, None)


@torch.no_grad()
def run(decoder: ClassQueryDecoder, inputs: tuple[torch.Tensor, ClassQueryMemory]) -> torch.Tensor:
    """Class features of all layers."""
    return decoder(*inputs).class_hidden_states


if __name__ == "__main__":
    main()
