"""The words world: pictures of words, their prompts, misspelt captions, and a reader that never trains."""

import pytest
import torch
from pictures import blurred

from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.worlds.common.tokenizer import CONTEXT, byte_tokenizer
from dgpo.worlds.words import captions, glyphs, metrics, prompts, reader
from dgpo.worlds.words.render import coverage, draw, render
from dgpo.worlds.words.vocabulary import BORDER, CELL, FONTS, LENGTHS, LETTERS, MAX_LENGTH, TAGS

ALL = prompts.spell([word for length in LENGTHS for word in prompts.all_words(length)])


def drawn(count, key=0):
    """Pictures of words drawn at random from all, lengths in equal shares, and their images."""
    rng = generator(key, "test")
    length = LENGTHS[0] + torch.arange(count)[:, None] % len(LENGTHS)
    letters = torch.randint(len(LETTERS), (count, MAX_LENGTH), generator=rng)
    pictures = draw(torch.where(torch.arange(MAX_LENGTH) < length, letters, -1), rng)
    return pictures, render(pictures)


def legibility(images):
    return metrics.legibility(images, reader.read(images))


def diversity(images, group_index, lengths):
    return metrics.diversity(images, reader.read(images), group_index, lengths)


def test_pictures_depend_on_the_seed_alone():
    assert torch.equal(drawn(9)[1], drawn(9)[1])
    assert not torch.equal(drawn(9)[1], drawn(9, key=1)[1])


def test_words_lie_inside_and_reach_every_place():
    pictures, images = drawn(450)
    assert images.shape == (450, 3, 64, 64)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    cover = coverage(pictures.letters, pictures.font, pictures.corner)
    cover[:, BORDER:-BORDER, BORDER:-BORDER] = 0
    assert float(cover.amax()) == 0
    length = (pictures.letters >= 0).sum(1)
    for n in LENGTHS:
        corner = pictures.corner[length == n]
        assert corner.amin(0).tolist() == [BORDER, BORDER]
        assert corner.amax(0).tolist() == [64 - BORDER - n * CELL[1], 64 - BORDER - CELL[0]]


def test_letters_fill_the_height_of_their_cells_and_stay_apart():
    masks = glyphs.masks()
    assert masks.shape == (len(FONTS), len(LETTERS), *CELL)
    assert CELL[0] >= 14
    assert float(masks[:, :, [0, -1]].amax(-1).amin()) > 0.3
    assert float(masks[..., [0, -1]].sum((2, 3)).amin()) == 0 or float(masks[..., -1].amax()) == 0


def test_splits_hold_letters_out_by_their_place():
    train, seen, unseen = ({row["text"] for row in prompts.load(split)} for split in ("train", "seen", "unseen"))
    assert seen < train
    assert not train & unseen
    places = {(i, letter) for word in train for i, letter in enumerate(word)}
    assert all(any((i, letter) not in places for i, letter in enumerate(word)) for word in unseen)
    assert len(places) == MAX_LENGTH * (len(LETTERS) - 1)  # all the others were seen
    assert len(train) == 3 * prompts.TRAIN_SIZE


def test_tags_choose_lengths():
    assert {len(row["text"]) for row in prompts.load("unseen", ["letters_2", "letters_4"])} == {2, 4}
    assert [row["tag"] for row in prompts.load("train")[:3]] == list(TAGS)
    with pytest.raises(UserError, match="Did you mean 'letters_3'"):
        prompts.load("train", ["leters_3"])
    with pytest.raises(UserError, match=r"unknown split 'tran' of the words world\. Did you mean 'train'"):
        prompts.load("tran")


def test_every_letter_is_a_token_and_every_prompt_fits():
    tokenizer = byte_tokenizer([])
    for word in ("AC", "KLP", "STXA", "THEE"):
        ids = tokenizer(prompts.prompt(word)).input_ids
        assert len(ids) == len("theword") + 2 + len(word) + 2 <= CONTEXT
        tokens = [token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
        assert "".join(tokens[-2 - len(word) : -2]) == word.lower()


def test_the_stated_share_of_captions_is_misspelt():
    rng = generator(0, "captions")
    letters = ALL[torch.randint(len(ALL), (20_000,), generator=rng)]
    called = captions.captions(letters, rng, 0.5)
    # neighbours that are the same letter may change places unseen: a tenth of a fifth
    assert float((called != letters).any(1).float().mean()) == pytest.approx(0.5 * 0.98, abs=0.015)
    assert torch.equal(ALL[captions.word_index(called)], called)  # captions are words, and are found again
    assert torch.equal(captions.captions(letters, rng, 0.0), letters)


def test_misspelt_words_are_replaced_swapped_or_dropped_in_their_shares():
    rng = generator(0, "captions")
    letters = prompts.spell(["ACEH"]).expand(20_000, -1)
    called = captions.misspell(letters, rng)
    dropped = (called >= 0).sum(1) == 3
    swapped = (called.sort(1).values == letters).all(1)
    assert float(dropped.float().mean()) == pytest.approx(captions.MISSPELT["dropped"], abs=0.01)
    assert float(swapped.float().mean()) == pytest.approx(captions.MISSPELT["swapped"], abs=0.01)
    assert {reader.word(row) for row in called[dropped].unique(dim=0)} == {"CEH", "AEH", "ACH", "ACE"}
    assert {reader.word(row) for row in called[swapped].unique(dim=0)} >= {"CAEH", "AECH", "ACHE"}
    kept = (called == letters)[~dropped & ~swapped].float().mean()
    assert float(kept) == pytest.approx(0.75 * 0.5, abs=0.01)  # one letter is always replaced, the others by half


def test_the_reader_knows_clean_pictures():
    pictures, images = drawn(300)
    reading = reader.read(images)
    assert (reading.letters == pictures.letters).all(1).float().mean() >= 0.99
    for part in ("font", "ink", "tint", "corner"):
        assert (getattr(reading, part) == getattr(pictures, part)).float().mean() >= 0.99
    assert legibility(images).min() > 0.99


def test_the_reader_needs_no_grid():
    pictures, images = drawn(30)
    reading = reader.read(images.roll((1, 2), (2, 3)))
    assert torch.equal(reading.letters, pictures.letters)
    assert torch.equal(reading.corner, pictures.corner + torch.tensor([2, 1]))


def test_legibility_falls_with_blur_and_with_malformed_letters():
    _, images = drawn(30)
    means = [legibility(blurred(images, radius)).mean().item() for radius in (0.5, 1.0, 2.0)]
    assert 1 > means[0] > means[1] > means[2]
    striped = images.clone()
    striped[:, :, ::4] = images[:, :, :1]  # every fourth line is missing
    assert legibility(striped).mean() < 0.9
    beside = images.clone()
    beside[:, :, :3, :40] = 0
    assert legibility(beside).mean() < 0.9


def test_nothing_and_noise_are_not_legible():
    empty, noise = torch.full((2, 3, 64, 64), 0.98), torch.rand(2, 3, 64, 64, generator=generator(0, "test"))
    assert (legibility(torch.cat([empty, noise])) < 0.05).all()
    assert [reader.word(row) for row in reader.read(empty).letters] == ["", ""]


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match=r"the words world reads images .* got \(1, 3, 32, 32\)"):
        reader.read(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("word", ["AC", "HEP", "STXA"])
def test_independent_pictures_have_diversity_one_and_copies_none(word):
    images = render(draw(prompts.spell([word] * 60), generator(1, "test")))
    group, lengths = torch.zeros(60, dtype=torch.int64), torch.full((60,), len(word))
    assert diversity(images, group, lengths).item() == pytest.approx(1, abs=0.1)
    assert diversity(images[:1].expand(60, -1, -1, -1), group, lengths).item() == 0


def test_scribbles_are_not_diverse():
    noise = torch.rand(4, 3, 64, 64, generator=generator(0, "test"))
    assert diversity(noise, torch.zeros(4, dtype=torch.int64), torch.full((4,), 2)).isnan().all()
