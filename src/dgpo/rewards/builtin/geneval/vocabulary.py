"""The words of GenEval (Ghosh et al. 2023, arXiv 2310.11513): COCO's 80 classes under GenEval's names, and its grammar.

Articles and plurals follow GenEval's own rules to the letter, so that a prompt made here reads as in the benchmark:
"an" before a, e, i, o, u, and a plural in "es" after s, else in "s" ("four benchs", "two knifes").
"""

from __future__ import annotations

CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
UNSEEN_CLASSES = tuple(
    """apple, baseball bat, bed, book, bowl, car, clock, cup, dog, elephant, fire hydrant, frisbee, microwave,
    skateboard, skis, toilet, toothbrush, traffic light, umbrella, wine glass""".replace("\n    ", " ").split(", ")
)
"""Objects that no training prompt names: the 20 of Flow-GRPO's test of generalisation (arXiv 2505.05470)."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three", 4: "four"}
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

_OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "hairdryer": "hair drier",
    "doughnut": "donut",
}


def class_name(label: str) -> str:
    """GenEval's name of a detector's label: COCO's "mouse", "diningtable", "tvmonitor"; others stay as they are."""
    return _NAMES.get(_squashed(label), label)


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _squashed(label: str) -> str:
    return "".join(letter for letter in label.lower() if letter.isalnum())


_NAMES = {_squashed(name): name for name in CLASSES} | _OTHER_NAMES
