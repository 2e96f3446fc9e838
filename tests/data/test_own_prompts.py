"""A run without evaluation sets of its own evaluates its own prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from dgpo import Config, UserError
from dgpo.config import AUTOMATIC, HELD_OUT, TRAINED
from dgpo.data.own_prompts import evaluation_sets, part
from dgpo.data.prompts import load_prompts


def config(**changes: Any) -> Config:
    return Config(**{"model": "m", "prompts": ("a",), "rewards": {"mine": 1.0}, **changes})


def texts(number: int) -> list[str]:
    return [f"prompt {i}" for i in range(number)]


@pytest.mark.parametrize(("number", "expected"), [(20, 4), (49, 4), (60, 6), (320, 32), (1000, 32)])
def test_a_tenth_is_held_out_and_never_trained(number: int, expected: int) -> None:
    trained, sets, sources = part(config(), load_prompts(texts(number)))
    assert sources == {"held_out": HELD_OUT}
    assert len(sets["held_out"]) == expected
    assert {*trained.prompts} | {*sets["held_out"].prompts} == {*texts(number)}
    assert not {*trained.prompts} & {*sets["held_out"].prompts}


def test_with_few_prompts_those_that_train_are_evaluated_and_named_so() -> None:
    trained, sets, sources = part(config(), load_prompts(texts(19)))
    assert sources == {"trained": TRAINED}
    assert trained.prompts == sets["trained"].prompts == texts(19)


def test_which_ones_depends_on_text_and_seed_only() -> None:
    def held_out(rows: list[str], seed: int = 0) -> set[str]:
        return {*part(config(seed=seed), load_prompts(rows)).evaluated["held_out"].prompts}

    rows = texts(60)
    by_hash = sorted(rows, key=lambda text: hashlib.sha256(f"0\n{text}".encode()).hexdigest())
    assert held_out(rows) == held_out(rows[::-1]) == {*by_hash[:6]}
    assert held_out(rows) != held_out(rows, seed=1)


def test_a_prompt_that_stands_there_twice_is_one() -> None:
    rows = [(text, {"row": row}) for row, text in enumerate(texts(30) * 2)]
    trained, sets, _ = part(config(), load_prompts(rows))
    assert len(trained) == 2 * 27 - 2
    assert len({*sets["held_out"].prompts}) == len(sets["held_out"]) == 4
    assert all(row["row"] < 30 for row in sets["held_out"].metadata)
    assert not {*trained.prompts} & {*sets["held_out"].prompts}


def test_what_is_given_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\n")
    given = {"test": str(tmp_path / "test.txt"), "own": HELD_OUT}
    trained, sets, sources = part(config(eval_prompts=given), load_prompts(texts(40)))
    assert sources == given
    assert sets["test"].prompts == ["one", "two"]
    assert (len(trained), len(sets["own"])) == (36, 4)
    assert part(config(eval_prompts={}), load_prompts(texts(40))) == (load_prompts(texts(40)), {}, {})


def test_a_run_that_never_evaluates_trains_all_of_its_prompts() -> None:
    trained, sets, sources = part(config(eval_every=0), load_prompts(texts(40)))
    assert (len(trained), sets) == (40, {})
    assert sources == {"trained": TRAINED}, "so that a resume with evaluations trains the same prompts"


def test_a_dataset_trains_all_groups() -> None:
    trained, _, sources = part(config(offline="groups"), load_prompts(texts(40)))
    assert (len(trained), sources) == (40, {"trained": TRAINED})
    with pytest.raises(UserError, match="offline trains all groups; evaluate prompts:trained"):
        part(config(offline="groups", eval_prompts={"own": HELD_OUT}), load_prompts(texts(40)))


def test_too_few_to_hold_out() -> None:
    with pytest.raises(UserError, match="only 19 different ones; bring at least 20, or evaluate prompts:trained"):
        part(config(eval_prompts={"own": HELD_OUT}), load_prompts(texts(19)))


def test_the_automatic_set_stands_beside_others(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\n")
    both = {**AUTOMATIC, "test": str(tmp_path / "test.txt")}
    for number, name in ((40, "held_out"), (10, "trained")):
        alone, (trained, sets, sources) = (
            part(config(**changes), load_prompts(texts(number))) for changes in ({}, {"eval_prompts": both})
        )
        assert [*sources] == [*sets] == [name, "test"]
        assert (trained, sets[name]) == (alone.trained, alone.evaluated[name])
        assert sets["test"].prompts == ["one", "two"]


def test_its_name_is_its_own() -> None:
    given = {**AUTOMATIC, "held_out": "mine.txt"}
    with pytest.raises(UserError, match=r"has held_out=mine\.txt beside auto=prompts, .* another name"):
        part(config(eval_prompts=given), load_prompts(texts(40)))


def test_its_images_are_counted_by_its_name() -> None:
    own = config(eval_images={"trained": 3})
    part(own, load_prompts(texts(19)))
    with pytest.raises(UserError, match=r"names 'trained', which is no evaluation set\. Known: held_out"):
        part(own, load_prompts(texts(40)))


def test_outside_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(texts(40)))
    sets = evaluation_sets(config(prompts=str(path), eval_every=0, eval_prompts={"own": HELD_OUT}))
    assert sets == part(config(eval_prompts={"own": HELD_OUT}), load_prompts(texts(40))).evaluated
    others = evaluation_sets(config(prompts="gone.txt", eval_prompts={"test": str(path)}))
    assert others["test"].prompts == texts(40), "its own prompts are not read"


def test_a_config_that_names_no_set_has_the_automatic_one() -> None:
    assert config().eval_prompts == AUTOMATIC
