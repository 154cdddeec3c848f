"""Frames that show their own number, so that a wrong one is noticed."""

import numpy as np
from PIL import Image


HEIGHT, WIDTH = 64, 128
# A frame shows its number as bits: two rows of eight black or white cells.
NUM_ROWS, NUM_COLUMNS = 2, 8


def paint(number: int) -> np.ndarray:
    bits = (number >> np.arange(NUM_ROWS * NUM_COLUMNS)) & 1
    cells = np.where(bits, 220, 30).astype(np.uint8).reshape(NUM_ROWS, NUM_COLUMNS)
    gray = np.kron(cells, np.ones((HEIGHT // NUM_ROWS, WIDTH // NUM_COLUMNS), np.uint8))
    return np.repeat(gray[..., None], 3, axis=-1)


def number_on(image: np.ndarray) -> int:
    assert image.dtype == np.uint8
    if image.shape != (HEIGHT, WIDTH, 3):
        image = resize(image, (HEIGHT, WIDTH))
    cells = image.reshape(NUM_ROWS, HEIGHT // NUM_ROWS, NUM_COLUMNS, WIDTH // NUM_COLUMNS, 3).mean(axis=(1, 3, 4))
    return int(((cells.reshape(-1) > 125) << np.arange(NUM_ROWS * NUM_COLUMNS)).sum())


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Change the height and width by a pixel or so."""
    assert np.abs(np.subtract(image.shape[:2], size)).max() <= 1
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))


def numbers_on(images: np.ndarray) -> list[int]:
    return [number_on(image) for image in images]
