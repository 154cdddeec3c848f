"""Texts of pictures in fonts that have their letters."""

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw

from classquery.data import fonts
from classquery.data.fonts import font_for


def picture_of(letter, font):
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((5, 5), letter, 255, font)
    return np.asarray(image)


def test_english_is_in_the_font_of_pillow():
    assert font_for("ball on the left 0.95 +3 more", 20) is font_for("", 20)
    assert font_for("", 20).size == 20


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="its font is not there")
@pytest.mark.parametrize("text", ["läuft", "прыжок", "άλμα", "čaká", "قفز"])
def test_letters_of_other_languages_are_no_boxes(text, caplog):
    font = font_for(text, 20)
    box = picture_of(fonts._NO_LETTER, font)
    assert all((picture_of(letter, font) != box).any() for letter in text)
    assert not caplog.messages


def test_letters_that_no_font_has_are_told_of_once(caplog):
    letter = "\U000f1234"  # Of nobody: for private use.
    for size in (20, 21):
        assert font_for(f"walk {letter}", size).size == size
    assert len(caplog.messages) == 1
    assert "drawn as boxes; install one" in caplog.messages[0]
