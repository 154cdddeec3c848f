"""Damaged files for readers: what disks, broken downloads and hands do to bytes, the same ones in every run."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


# In place of a number in text: what overflows, means nothing or turns round.
_NUMBERS = (b"-1", b"1e999", b"nan", b"99999999999999999999", b"0", b"", b"2147483648", b"\xd9\xa3")
# In the middle of anything: ends of lines and strings, nesting, bytes that are no UTF-8.
_PIECES = (b"\x00", b"\n", b'"', b"'", b",", b"{", b"]", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 2000, b"x" * 5000)
MAX_MESSAGE = 3000


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged forms of a file, all kinds of damage in turn."""
    generator = random.Random(seed)
    kinds = (_cut, _flip, _blank, _leave_out, _repeat, _insert, _change_number, _swap)
    for index in range(count):
        yield kinds[index % len(kinds)](content, generator)


def try_mutations(
    read: Callable[[Path], Any],
    path: Path,
    errors: type[Exception] | tuple[type[Exception], ...],
    *,
    count: int,
    seed: int = 0,
    check: Callable[[Any], None] = lambda result: None,
    max_seconds: float = 30.0,
) -> Counter[str]:
    """Read damaged forms of a file, which is put back in the end.

    Args:
        read: The reader.
        path: A file that it reads.
        errors: What it may raise, with a message of at most `MAX_MESSAGE` characters.
        count: Number of damaged forms.
        seed: Of the damage.
        check: Raises AssertionError if a result cannot be right.
        max_seconds: Of process time for one form: no input may hang.

    Returns:
        How many were "refused" and how many were "read".
    """
    content = path.read_bytes()
    outcomes: Counter[str] = Counter()
    try:
        for index, damaged in enumerate(mutations(content, count, seed)):
            path.write_bytes(damaged)
            print(f"damage {index} of {path.name}, seed {seed}")  # the last one is what failed
            start = time.process_time()
            try:
                check(read(path))
                outcomes["read"] += 1
            except errors as error:
                outcomes["refused"] += 1
                message = str(error)
                assert message, f"no message for damage {index}"
                assert len(message) <= MAX_MESSAGE, f"damage {index}: {len(message)} characters: {message[:300]}"
            seconds = time.process_time() - start
            assert seconds <= max_seconds, f"damage {index} of {path.name} took {seconds:.1f} s"
    finally:
        path.write_bytes(content)
    return outcomes


def _somewhere(content: bytes, generator: random.Random, longest: int = 64) -> tuple[int, int]:
    """Start and end of a short part."""
    start = generator.randrange(max(1, len(content)))
    return start, min(len(content), start + generator.randint(1, longest))


def _cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(max(1, len(content)))]


def _flip(content: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 8))):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _blank(content: bytes, generator: random.Random) -> bytes:
    start, end = _somewhere(content, generator, longest=512)
    return content[:start] + generator.choice((b"\x00", b"\xff")) * (end - start) + content[end:]


def _leave_out(content: bytes, generator: random.Random) -> bytes:
    start, end = _somewhere(content, generator)
    return content[:start] + content[end:]


def _repeat(content: bytes, generator: random.Random) -> bytes:
    start, end = _somewhere(content, generator)
    return content[:end] + content[start:]


def _insert(content: bytes, generator: random.Random) -> bytes:
    start, _ = _somewhere(content, generator)
    return content[:start] + generator.choice(_PIECES) + content[start:]


def _change_number(content: bytes, generator: random.Random) -> bytes:
    """Change a number written in text; where there is none, a byte."""
    start = generator.randrange(len(content))
    while start < len(content) and not content[start : start + 1].isdigit():
        start += 1
    end = start
    while end < len(content) and content[end : end + 1] in b"0123456789.":
        end += 1
    if start == len(content):
        return _flip(content, generator)
    return content[:start] + generator.choice(_NUMBERS) + content[end:]


def _swap(content: bytes, generator: random.Random) -> bytes:
    first, second = sorted((_somewhere(content, generator), _somewhere(content, generator)))
    if first[1] > second[0]:
        return _flip(content, generator)
    between = content[first[1] : second[0]]
    return content[: first[0]] + content[slice(*second)] + between + content[slice(*first)] + content[second[1] :]
