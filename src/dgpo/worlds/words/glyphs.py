"""The letters as masks. They were drawn once from DejaVu fonts and lie here as a picture, so no font is needed.

A letter is stretched to fill its cell's height and narrowed to leave its right and left column free at least.

    python -m dgpo.worlds.words.glyphs     # draws the picture again, from the fonts in matplotlib
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo.utils.pictures import from_pil
from dgpo.worlds.words.vocabulary import CELL, FONTS, LETTERS

PICTURE = Path(__file__).parent / "assets" / "glyphs.png"
# Name of the file and the factor by which letters are narrowed.
SOURCES = dict(zip(FONTS, (("DejaVuSans-Bold", 0.8), ("DejaVuSerif-Bold", 0.75), ("DejaVuSans-BoldOblique", 0.7))))
LARGE = 256  # pixels, the size at which letters are drawn before they are brought to the cell's


@cache
def masks() -> Tensor:
    """How much of each pixel ink covers: (fonts, letters, height, width) fp32 in [0, 1]."""
    with Image.open(PICTURE) as picture:
        pixels = from_pil(picture)
    height, width = CELL
    return pixels.view(len(FONTS), height, len(LETTERS), width).transpose(1, 2).contiguous()


def draw_picture() -> Image.Image:
    """One row of cells a font, one column a letter, 8-bit grey."""
    height, width = CELL
    picture = Image.new("L", (width * len(LETTERS), height * len(FONTS)))
    for row, (file, narrowed) in enumerate(SOURCES.values()):
        capital = _large(file, "H").height
        for column, letter in enumerate(LETTERS):
            glyph = _large(file, letter)
            wide = min(width - 1, round(glyph.width * narrowed * height / capital))
            place = column * width + (width - wide) // 2, row * height
            picture.paste(glyph.resize((wide, height), Image.Resampling.BOX), place)
    return picture


def _large(file: str, letter: str) -> Image.Image:
    """A letter, cut out without any margin."""
    import matplotlib

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{file}.ttf")), LARGE)
    picture = Image.new("L", (2 * LARGE, 2 * LARGE))
    ImageDraw.Draw(picture).text((LARGE // 2, LARGE // 4), letter, font=font, fill=255)
    return picture.crop(picture.getbbox())


if __name__ == "__main__":
    draw_picture().save(PICTURE)
