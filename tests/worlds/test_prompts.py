"""The prompt lists: all six tasks, what is held out, and that everybody gets the same."""

import hashlib
import json

import pytest

from dgpo.errors import UserError
from dgpo.worlds.shapes.prompts import SPLIT_SIZES, all_prompts, held_out, load
from dgpo.worlds.shapes.vocabulary import KINDS


def test_all_prompts_of_a_kind_differ_and_carry_genevals_schema():
    sizes = {}
    for kind in KINDS:
        prompts = all_prompts(kind)
        sizes[kind] = len(prompts)
        assert len({p["prompt"] for p in prompts}) == len(prompts)
        for prompt in prompts:
            assert prompt["tag"] == kind
            assert all(entry["class"] in prompt["prompt"] or entry["count"] > 1 for entry in prompt["include"])
    assert sizes == {
        "single_object": 6, "two_object": 30, "counting": 18, "colors": 48, "position": 120, "color_attr": 1680,
    }  # fmt: skip


def test_wording():
    texts = {p["prompt"] for kind in KINDS for p in all_prompts(kind)}
    assert {"a circle", "a star and a cross", "three crosses", "an orange star"} <= texts
    assert {"a cross left of a star", "a red circle and an orange star"} <= texts


def test_how_much_is_held_out():
    share = {kind: sum(map(held_out, all_prompts(kind))) for kind in KINDS}
    attributed = share.pop("color_attr")
    assert share == {"single_object": 0, "two_object": 6, "counting": 4, "colors": 8, "position": 24}
    assert 0 < attributed < len(all_prompts("color_attr")) / 2


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_a_split_keeps_to_its_side(split):
    prompts = load(split)
    assert all(held_out(p) == (split == "unseen") for p in prompts)
    kinds = [kind for kind in KINDS if any(p["tag"] == kind for p in prompts)]
    assert kinds == [kind for kind in KINDS if split != "unseen" or kind != "single_object"]
    for kind in kinds:
        assert sum(p["tag"] == kind for p in prompts) == SPLIT_SIZES[split]
    assert {p["tag"] for p in prompts[: len(kinds)]} == set(kinds)


def test_seen_shares_no_prompt_with_train_where_there_are_enough():
    train = {p["prompt"] for p in load("train", ["color_attr"])}
    assert not train & {p["prompt"] for p in load("seen", ["color_attr"])}


def test_lists_are_the_same_everywhere():
    digest = {s: hashlib.sha256(json.dumps(load(s)).encode()).hexdigest()[:12] for s in SPLIT_SIZES}
    assert digest == {"train": "c9e9a0d1a087", "seen": "dfaaa217f9db", "unseen": "5608940536aa"}


def test_bad_names_are_told():
    with pytest.raises(UserError, match="Did you mean 'unseen'"):
        load("unsen")
    with pytest.raises(UserError, match="Did you mean 'counting'"):
        load("train", ["countin"])
    with pytest.raises(UserError, match="no prompt of the kinds single_object"):
        load("unseen", ["single_object"])
