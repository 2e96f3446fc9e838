"""Prompts for the reward `ocr`: a place where letters stand, and in double quotes what they say.

Ours, from templates, so that a run can begin without a file. The lists of Flow-GRPO, which DGPO's authors took, were
written by a language model. Splits: `train`, and `test`, whose texts no training prompt asks for. Kinds, as the
metadata `tag`: one word, two words, these behind "The", and a number with a word. `train` has the kinds as 1 : 2 : 1 :
1, `test` as many of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from dgpo.errors import UserError, did_you_mean

SPLITS = ("train", "test")
SHARES = {"one_word": 1, "two_words": 2, "three_words": 1, "number": 1}
TRAIN_SIZE = 3000
TEST_SIZE = 64
"""Prompts of each kind in `test`."""
_TEST_SHARE = 5  # one text in so many is for `test`


def _words(text: str) -> list[str]:
    return text.split()


_FIRST = _words("""
    Amber Blue Bright Brave Broken Calm Clever Cosmic Crystal Daily Deep Double Early Electric Empty Fresh Frozen
    Gentle Giant Golden Grand Green Happy Hidden Honest Hungry Iron Lazy Little Lonely Lucky Midnight Modern Noble
    Old Orange Purple Quiet Rapid Red Royal Rusty Secret Silent Silver Simple Slow Spicy Sunny Sweet Tiny Velvet
    Wild Winter Wooden
""")
_SECOND = _words("""
    Anchor Apple Bakery Bear Bicycle Books Bridge Cafe Camera Candle Castle Cinema Circus Cloud Coffee Comet Corner
    Dragon Dream Engine Falcon Ferry Forest Fox Garden Ghost Guitar Harbor Hotel House Island Jungle Kitchen Ladder
    Lantern Lemon Library Lion Market Mirror Moon Mountain Museum Ocean Orchard Owl Palace Pepper Piano Pirate
    Planet Pocket Rabbit Radio River Rocket Salon School Shadow Ship Station Storm Studio Theater Tiger Tower Train
    Turtle Valley Violin Wagon Whale Window Wizard Yard
""")
_ALONE = _words("""
    Closed Danger Detour Exit Forever Free Hello Help Home Imagine Listen Love Menu Open Peace Please Push Pull
    Ready Reserved Return Sale Silence Slow Sold Start Stop Thanks Tickets Together Tomorrow Vacancy Victory Warning
    Welcome Why Yes Zero
""")
_NUMBERED = _words("""
    Room Floor Gate Exit Platform Bus Route Track Lane Pier Table Locker Taxi Level Dock Hall
""")
_SCENES = (
    "a bakery storefront with a sign that reads {}",
    "a neon sign that says {} in a dark alley",
    "a chalkboard outside a cafe with the words {}",
    "a birthday cake with {} written in icing",
    "a movie poster with the title {}",
    "a wooden signpost in a forest that points to {}",
    "a book on a desk with the title {} on its cover",
    "a white T-shirt printed with {}",
    "a coffee mug that says {} on a kitchen table",
    "a billboard beside a highway that reads {}",
    "a train station board that shows {}",
    "a street mural with the words {} in bright colors",
    "a robot that holds a cardboard sign saying {}",
    "a cat beside a note that reads {}",
    "a newspaper with the headline {}",
    "a subway wall with {} sprayed in graffiti",
    "a shop window with {} in gold letters",
    "a metal plate on a door engraved with {}",
    "a banner across a city square that says {}",
    "a phone screen that shows the message {}",
    "a postcard of a beach with the words {}",
    "a bottle with a label that reads {}",
    "a beach where {} is written in the sand",
    "an old ship with the name {} on its hull",
    "a food truck with {} painted on its side",
    "a stadium scoreboard that shows {}",
    "a hot air balloon with {} on it",
    "a cereal box with the name {}",
    "a stone arch with {} carved above the gate",
    "a spaceship with {} in large letters on its wing",
    "a vintage travel poster with the words {}",
    "a school blackboard with {} in white chalk",
)


def load(split: str, kinds: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Rows {"prompt", "text", "tag"}, the same on every machine; kinds interleaved."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} of OCR's prompts. {did_you_mean(split, SPLITS)}")
    chosen = tuple(kinds) if kinds else tuple(SHARES)
    for kind in chosen:
        if kind not in SHARES:
            raise UserError(f"unknown kind of prompt {kind!r}. {did_you_mean(kind, SHARES)}")
    rows = {kind: _rows(kind, split) for kind in chosen}
    if split == "test":
        return [next(rows[kind]) for _ in range(TEST_SIZE) for kind in chosen]
    turn = [kind for kind in chosen for _ in range(1 if kinds else SHARES[kind])]
    return [next(rows[kind]) for _ in range(TRAIN_SIZE // len(turn)) for kind in turn]


def _rows(kind: str, split: str) -> Iterator[dict[str, Any]]:
    """Every text in one scene after the other; no prompt twice before all of both are through."""
    texts = [text for text in sorted(_texts(kind), key=_hash) if _is_for_test(text) == (split == "test")]
    for turn in count():
        for place, text in enumerate(texts):
            scene = _SCENES[(place + turn) % len(_SCENES)]
            yield {"prompt": scene.format(f'"{text}"'), "text": text, "tag": kind}


def _texts(kind: str) -> Iterable[str]:
    pairs = [(first, second) for first in _FIRST for second in _SECOND]
    return {
        "one_word": [*_ALONE, *_SECOND],
        "two_words": [f"{first} {second}" for first, second in pairs],
        "three_words": [f"The {first} {second}" for first, second in pairs],
        "number": [f"{word} {number}" for word in _NUMBERED for number in range(1, 100)],
    }[kind]


def _is_for_test(text: str) -> bool:
    return _hash(text.removeprefix("The ")) % _TEST_SHARE == 0  # "The Red House" beside "Red House"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
