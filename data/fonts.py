"""Fonts for pictures: to each text one that has its letters."""

import importlib.util
import logging
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from PIL import ImageFont


logger = logging.getLogger(__name__)

# Looked for in the folders of the system. Pillow's own font has the letters of English and few others.
_OF_SYSTEMS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "YuGothR.ttc",
    "malgun.ttf",
)
_NO_LETTER = "\U0010fffe"
# Marks, and what joins or chooses letters, are not drawn by themselves.
_INVISIBLE = ("Cf", "Mn", "Zs")


@lru_cache(maxsize=1024)
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Load the first font that has all letters of a text, Pillow's own if it does; or the one that has most of them.

    Args:
        text: What is to be written.
        size: Height in pixels.
    """
    best, fewest = None, set(text)
    for font in _fonts(size):
        missing = _missing(text, font)
        if not missing:
            return font
        if best is None or len(missing) < len(fewest):
            best, fewest = font, missing
    _tell_of("".join(sorted(fewest)))
    return best


def _fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield _load(None, size)
    matplotlib = importlib.util.find_spec("matplotlib")
    folders = matplotlib.submodule_search_locations if matplotlib else []
    for name in (*(f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf" for folder in folders), *_OF_SYSTEMS):
        font = _load(name, size)
        if font is not None:
            yield font


@lru_cache(maxsize=256)
def _load(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _missing(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """Letters for which a font draws what it draws for any that it lacks."""
    nothing = _drawn(_NO_LETTER, font)
    visible = {letter for letter in text if unicodedata.category(letter) not in _INVISIBLE}
    return {letter for letter in visible if _drawn(letter, font) == nothing}


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=1024)
def _tell_of(letters: str) -> None:
    """Warn of letters that no font has, once."""
    logger.warning("no font here has %r: drawn as boxes; install one that does, as Noto Sans CJK", letters[:200])
