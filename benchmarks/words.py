"""Sentences for the classes of the demo, and a text tower that knows nothing but that a word is itself."""

import zlib

import torch
import torch.nn.functional as F


DESCRIPTIONS = {
    "stand": "the person stands still",
    "walk": "the person walks",
    "jump": "the person jumps",
    "ball on the left": "a ball is on the left of the person",
    "ball on the right": "a ball is on the right of the person",
    "kite on the left": "a kite is on the left of the person",
    "kite on the right": "a kite is on the right of the person",
    "watch a jump": "the person watches another jump",
}
PARTS = {
    "ball": "a ball is with the person",
    "kite": "a kite is with the person",
    "left": "something is on the left of the person",
    "right": "something is on the right of the person",
}
WIDTH = 64


def encode(sentences: list[str]) -> torch.Tensor:
    """Mean of one vector per word, which is the same in all runs: (n, 64)."""
    return F.normalize(torch.stack([torch.stack(list(map(_vector, s.split()))).mean(0) for s in sentences]), dim=-1)


def _vector(word: str) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
