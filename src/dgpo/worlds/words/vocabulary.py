"""The letters of the world and how they may be drawn.

Ten capitals that a reader tells apart in every font, all in cells of one size. Corners of words lie on a grid of four
pixels, the autoencoder's own, so that a small model soon draws letters that are crisp and is left with spelling them.
"""

from __future__ import annotations

LETTERS = "ACEHKLPSTX"
LENGTHS = (2, 3, 4)
MAX_LENGTH = max(LENGTHS)
CELL = (16, 12)  # pixels (height, width) of a letter; capitals fill the height
GRID, BORDER = 4, 4  # pixels between places where a word may begin; least distance of a word from the frame

FONTS = ("sans", "serif", "slanted")
INKS: dict[str, tuple[int, int, int]] = {
    "red": (200, 30, 30),
    "green": (20, 120, 50),
    "blue": (35, 60, 200),
    "purple": (130, 40, 160),
    "brown": (150, 80, 10),
    "black": (25, 25, 25),
}
TAGS = tuple(f"letters_{length}" for length in LENGTHS)
