"""The OCR reward on rendered words, with the real reader; the rules for target, comparison and reading order alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.rewards.base import call_reward
from dgpo.rewards.builtin import ocr
from dgpo.rewards.builtin.ocr import OCR, in_reading_order, plain, target

FONTS = Path(get_data_path()) / "fonts/ttf"


@pytest.fixture(scope="module")
def reward() -> OCR:
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    return OCR(threads=1)


def draw(word: str, size: int = 128, px: int = 24, font: str = "DejaVuSans", fg="black", bg="white", turn=0) -> Tensor:
    """(1, 3, size, size): a word or several lines in the middle, glyphs of `px` font pixels, turned by degrees."""
    picture = Image.new("RGB", (size, size), bg)
    pen = ImageDraw.Draw(picture)
    pen.text((size / 2, size / 2), word, fill=fg, font=ImageFont.truetype(str(FONTS / f"{font}.ttf"), px), anchor="mm")
    pixels = np.asarray(picture.rotate(turn, fillcolor=bg, resample=Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def score(reward: OCR, images: Tensor, *words: str) -> list[float]:
    return reward(images, [f'a sign that says "{word}"' for word in words], [{}] * len(words))["ocr"]


@pytest.mark.parametrize("font", ["DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono", "STIXGeneral", "cmr10"])
def test_fonts(reward, font):
    assert score(reward, draw("Coffee", font=font), "Coffee") == [1]


@pytest.mark.parametrize(("size", "px"), [(64, 14), (64, 20), (128, 40), (256, 16), (256, 90), (512, 24)])
def test_sizes(reward, size, px):
    assert score(reward, draw("Stop", size, px), "Stop") == [1]


def test_colours_together_with_the_exact_share(reward):
    pairs = [("black", "white"), ("white", "navy"), ("yellow", "darkgreen"), ("red", "white"), ("#888", "#ddd")]
    images = torch.cat([draw("Music 24", fg=fg, bg=bg) for fg, bg in pairs])
    scores = reward(images, ["'Music 24' in letters"] * 5, [{}] * 5)
    assert scores == {"ocr": [1] * 5, "exact": [1] * 5}
    scores = reward(images[:2], ["'Music 25'", "'unlike'"], [{}] * 2)
    assert scores["ocr"] == [pytest.approx(6 / 7), 0]
    assert scores["exact"] == [0, 0]


@pytest.mark.parametrize("turn", [-20, -8, 8, 20])
def test_rotations(reward, turn):
    assert score(reward, draw("Open", px=36, turn=turn), "Open") == [1]


def test_noise_is_survived_and_is_no_text(reward):
    noise = torch.randn(2, 3, 128, 128, generator=generator(0, "test"))
    assert score(reward, (draw("Bread", px=32) + 0.1 * noise[:1]).clamp(0, 1), "Bread") == [1]
    assert score(reward, (0.5 + 0.3 * noise).clamp(0, 1), "Bread", "a") == [0, 0]


def test_blank_pictures_score_nothing(reward):
    blank = torch.stack([torch.full((3, 64, 64), value) for value in (0.0, 0.5, 1.0)])
    assert reward.read(blank) == ["", "", ""]
    assert score(reward, blank, "a", "EXIT", "long enough text") == [0, 0, 0]


def test_pixels_that_are_not_finite_never_become_a_score(reward):
    with pytest.raises(ValueError, match="not finite"):
        score(reward, draw("a") * float("nan"), "a")


def test_lines_are_read_in_order_and_extra_text_costs_unless_it_is_free(reward):
    image = draw("GRAND\nOPENING", 256, 40)
    assert score(reward, image, "grand opening") == [1]
    assert score(reward, image, "opening") == [pytest.approx(1 - 5 / 7)]
    free = OCR(free_extra_text=True, threads=1)
    assert free(image, ['"opening"'], [{}]) == {"ocr": [1], "exact": [0]}


def test_pictures_that_are_not_square_and_several_at_once_read_as_one_by_one(reward):
    images = torch.cat([draw("left", 192, 40), draw("right", 192, 40)])[:, :, 48:144]
    assert reward.read(images) == [reward.read(image[None])[0] for image in images] == ["left", "right"]


def test_through_the_reward_interface(reward):
    scores = call_reward("ocr", reward, draw("EXIT", px=40), ["a door"], [{"text": "Exit"}])
    assert {name: values.tolist() for name, values in scores.items()} == {"ocr": [1], "ocr/exact": [1]}


@pytest.mark.parametrize(
    ("prompt", "metadata", "text"),
    [
        ('a sign saying "Open 24/7" at night', {}, "Open 24/7"),
        ('"GRAND" above "OPENING"', {}, "GRAND OPENING"),
        ("a mug with ‘Best Dad’ on it", {}, "Best Dad"),
        ("“Bonjour” and «Salut» and „Hallo“", {}, "Bonjour Salut Hallo"),
        ("a poster: 'Don't stop'", {}, "Don't stop"),
        ("the cat's sign says 'Meow'", {}, "Meow"),
        ("'Jaws' on a poster with \"SHARK\"", {}, "SHARK"),
        ('a sign saying "no"', {"text": "yes", "target": "other"}, "yes"),
        ("no quotes at all", {"target": "yes"}, "yes"),
    ],
)
def test_where_the_target_comes_from(prompt, metadata, text):
    assert target(prompt, metadata) == text


@pytest.mark.parametrize(
    ("prompt", "metadata", "why"),
    [
        ("the cat's toy, the dogs' toy", {}, "nothing in it stands in quotes"),
        ('an "  " sign', {}, "nothing in it"),
        ('"x"', {"text": " "}, "'text' is ' '"),
        ('"x"', {"text": ["a"]}, r"'text' is \['a'\]"),
    ],
)
def test_a_missing_target_names_the_prompt(prompt, metadata, why):
    with pytest.raises(UserError, match=why) as caught:
        target(prompt, metadata)
    assert repr(prompt) in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Spring Collection", "springcollection"), ("Don’t", "DON'T"), ("Hi！", "hi!"), ("O₂ — ½", "o2 - 1/2")],
)
def test_what_does_not_count_in_a_comparison(one, other):
    assert plain(one) == plain(other)
    assert plain("cafe") != plain("café")


def test_reading_order():
    def box(left, top, text, height=10, width=30):
        return [[[left, top], [left + width, top], [left + width, top + height], [left, top + height]], text, 0.9]

    words = [box(50, 32, "d"), box(0, 30, "c"), box(40, 4, "b"), box(0, 0, "a"), box(0, 60, "e", 40)]
    assert in_reading_order(words) == list("abcde")
    assert in_reading_order([box(50, 52, "right", 40), box(0, 60, "left", 40)]) == ["left", "right"]
    assert in_reading_order([]) == []


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(ocr.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"rapidfuzz.*pip install 'dgpo\[ocr\]'.*below 3.13"):
        OCR()

    def no_display(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(ocr.importlib, "import_module", no_display)
    with pytest.raises(UserError, match="opencv-python-headless"):
        OCR()
