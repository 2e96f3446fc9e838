"""The words world's prompts, its reward and its metrics fit together through the names a run uses."""

import pytest

from dgpo.core.seeds import generator
from dgpo.data.prompts import load_prompts
from dgpo.rewards.combine import RewardSet
from dgpo.worlds.words.prompts import spell
from dgpo.worlds.words.render import draw, render


def clean(source, count):
    rows = load_prompts(source).subset(range(count))
    return render(draw(spell(row["text"] for row in rows.metadata), generator(0, "test"))), rows


@pytest.mark.slow
def test_clean_pictures_of_the_words_asked_for_score_full():
    pytest.importorskip("rapidocr_onnxruntime")
    images, rows = clean("words:unseen", 24)
    rewards = RewardSet({"ocr": 1.0}, watched=("legibility", "words_diversity"))
    assert rewards.check(rows) == []
    scores, total = rewards(images, rows.prompts, rows.metadata)
    assert total.mean() >= 0.97
    assert scores["legibility"].min() > 0.99
    assert scores["legibility/exact"].mean() == 1
    assert scores["words_diversity"].tolist() == [0] * 24  # one picture a prompt has nothing to differ from


def test_another_word_is_legible_and_not_exact():
    images, rows = clean("words:seen:letters_3", 6)
    scores, _ = RewardSet({"legibility": 1.0})(images.roll(1, 0), rows.prompts, rows.metadata)
    assert scores["legibility"].min() > 0.99
    assert scores["legibility/exact"].tolist() == [0] * 6


def test_diversity_is_measured_prompt_by_prompt():
    rows = load_prompts("words:train").subset([0] * 20 + [1] * 20)
    letters = spell(row["text"] for row in rows.metadata)
    images = render(draw(letters, generator(0, "test")))
    images[20:] = images[20]
    scores, _ = RewardSet({"words_diversity": 1.0})(images, rows.prompts, rows.metadata)
    assert scores["words_diversity"][:20].mean() == pytest.approx(1, abs=0.2)
    assert scores["words_diversity"][20:].tolist() == [0] * 20
