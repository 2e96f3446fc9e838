"""Every prompt is shown to every reward before a run: what cannot be scored is named, doubts are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_geneval import save_yolos
from tiny_published import save_clip

from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError
from dgpo.rewards.base import Reward, requires
from dgpo.rewards.builtin.clip import ClipScore
from dgpo.rewards.builtin.geneval import GenEval
from dgpo.rewards.builtin.hpsv2 import HPSv2
from dgpo.rewards.builtin.imagereward import ImageReward
from dgpo.rewards.builtin.pickscore import PickScore
from dgpo.rewards.builtin.vlm_judge import VLMJudge
from dgpo.rewards.combine import RewardSet, check_run
from dgpo.rewards.registry import resolve
from dgpo.rewards.rows import check_rows, checks_rows


def lines(folder: Path, *rows: dict[str, Any] | str) -> PromptSet:
    """Prompts of a file in `folder`."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row} if isinstance(row, str) else row) + "\n" for row in rows))
    return load_prompts(path)


@checks_rows(lambda prompt, metadata: "says little" if len(prompt) < 3 else None)
def doubting(images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [0.0] * len(prompts)


class Picky:
    """A reward of a user's own."""

    def check_row(self, prompt: str, metadata: dict[str, Any]) -> None:
        if "cat" not in prompt:
            raise UserError(f"no cat in {prompt!r}")

    def __call__(self, images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [0.0] * len(prompts)


def test_rows_that_cannot_be_scored_are_named_by_file_and_line(tmp_path: Path) -> None:
    rows = lines(tmp_path, "a cat", "a dog", "two cats", "a cow", "x", "y", "z")
    with pytest.raises(UserError) as caught:
        RewardSet({"picky": 1.0}, {"picky": Picky()}).check(rows)
    where = f"of '{tmp_path}/prompts.jsonl'"
    assert str(caught.value) == (
        f"line 2 {where}: no cat in 'a dog'. 4 more cannot be scored either: "
        f"line 4 {where}, line 5 {where}, line 6 {where}, ..."
    )


def test_doubts_are_one_line_for_each_kind_with_counts() -> None:
    rows = PromptSet(["a", "b", "a cat", "c", "d"], [{}] * 5)
    assert check_rows("doubting", doubting, rows) == [
        "doubting, 4 of 5 prompts: says little (prompt 0, prompt 1, prompt 3, ...)"
    ]
    each = checks_rows(lambda prompt, metadata: f"is {prompt}")(lambda *_: [])
    found = check_rows("each", each, rows)
    assert len(found) == 4
    assert found[3] == "each, 2 more of 5 prompts are doubtful in other ways (prompt 3, prompt 4)"


def test_a_check_that_breaks_names_row_and_reward() -> None:
    broken = checks_rows(lambda prompt, metadata: metadata["size"])(lambda *_: [])
    with pytest.raises(UserError, match=r"prompt 1: the reward .* raised KeyError: 'size', for the prompt 'b'"):
        check_rows("broken", broken, PromptSet(["a", "b"], [{"size": None}, {}]))


@pytest.mark.parametrize("answer", [True, ["short"], {"doubt": 1}, 0.5])
def test_a_check_that_returns_no_text_names_row_and_reward(answer: Any) -> None:
    odd = checks_rows(lambda prompt, metadata: answer)(lambda *_: [])
    with pytest.raises(
        UserError, match=r"prompt 0: the reward .* returned .*, for the prompt 'a'; it must return a text"
    ):
        check_rows("odd", odd, PromptSet(["a"], [{}]))


def test_only_the_rows_that_a_reward_is_for_are_checked() -> None:
    rows = PromptSet(["a cat", "a dog"], [{"tag": "cats"}, {"tag": "dogs"}])
    functions = {"picky": Picky(), "any": doubting}
    assert RewardSet({"picky": 1.0, "any": 1.0}, functions, tags={"picky": ("cats",)}).check(rows) == []


CIRCLE = {"class": "circle", "count": 1}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("ocr", {"prompt": "a sign"}, "nothing in it stands in quotes"),
        ("ocr", {"prompt": "a sign", "text": ""}, "metadata 'text' is ''"),
        ("ocr", {"prompt": "a sign", "text": None}, "metadata 'text' is None"),
        ("ocr", {"prompt": 'a sign "Привет"'}, "cannot read 'Привет', .* does not know 'рвет', .* scores 0.33"),
        ("ocr", {"prompt": "a sign 「こ」", "target": "んにちは"}, "cannot read 'んにちは', .* scores 0"),
        ("shapes", {"prompt": "a"}, "shapes reads include"),
        ("shapes", {"prompt": "a", "include": []}, "asks for nothing"),
        ("shapes", {"prompt": "a", "include": "circle"}, "asks for nothing"),
        ("shapes", {"prompt": "a", "include": ["circle"]}, "'circle' is no entry"),
        ("shapes", {"prompt": "a", "include": [{"count": 1}]}, "is no entry"),
        ("shapes_strict", {"prompt": "a", "include": [{"class": "cat"}]}, "cannot judge the class 'cat'"),
        ("shapes", {"prompt": "a", "include": [{**CIRCLE, "color": "pnk"}]}, "cannot judge the color 'pnk'"),
        ("shapes", {"prompt": "a", "include": [{**CIRCLE, "count": 0}]}, "count=0"),
        ("shapes", {"prompt": "a", "include": [{**CIRCLE, "count": "2"}]}, "count='2'"),
        ("shapes", {"prompt": "a", "include": [{**CIRCLE, "position": ["above", 0]}]}, "position="),
        ("shapes", {"prompt": "a", "include": [{**CIRCLE, "position": "above"}]}, "position='above'"),
        (
            "shapes",
            {"prompt": "a", "include": [CIRCLE, {**CIRCLE, "position": ["beside", 0]}]},
            "the position 'beside'",
        ),
        ("diversity", {"prompt": "a", "include": [{**CIRCLE, "count": 9}]}, "asks for 9 objects"),
        ("legibility", {"prompt": "a", "text": 3}, "text=3 of the prompt 'a' is no word"),
        ("words_diversity", {"prompt": "a", "text": ""}, "is no word"),
    ],
)
def test_what_a_row_may_lack(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    if name == "ocr":
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    with pytest.raises(UserError, match=message) as caught:
        check_rows(name, resolve(name), lines(tmp_path, row))
    assert f"line 1 of '{tmp_path}/prompts.jsonl'" in str(caught.value)


def test_geneval_names_classes_that_its_detector_does_not_know_without_its_weights(tmp_path: Path) -> None:
    folder = save_yolos(tmp_path / "yolos")
    (folder / "model.safetensors").unlink()
    reward = GenEval(str(folder))
    rows = [
        {"prompt": "p", "tag": "single", "include": [{"class": name, "count": 1}]} for name in ("person", "unicorn")
    ]
    with pytest.raises(UserError, match=r"line 2 .*cannot judge the class 'unicorn'"):
        check_rows("geneval", reward, lines(tmp_path, *rows))
    assert check_rows("geneval", reward, lines(tmp_path, rows[0])) == []


def test_a_judges_template_is_filled_in() -> None:
    judge = VLMJudge("http://127.0.0.1:1/v1", "any", template="{prompt} {size:.2f}")
    with pytest.raises(UserError, match=r"prompt 1: the reward vlm_judge cannot fill in .*ValueError.*'b'"):
        check_rows("vlm_judge", judge, PromptSet(["a", "b"], [{"size": 1.0}, {"size": "big"}]))


@pytest.mark.parametrize("kind", [ClipScore, PickScore, HPSv2])
def test_prompts_that_clip_does_not_read_to_their_end_are_counted(kind: Any, tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()  # the tokenizer is enough
    reward = kind(str(folder), str(folder))
    rows = PromptSet(["a cat", "a " * 20, "cat " * 30], [{}] * 3)
    (line,) = check_rows("mine", reward, rows)
    assert line.startswith("mine, 2 of 3 prompts: longer than the 16 tokens that its text encoder reads")
    tokens = reward.towers.tokenizer
    longest = next(n for n in range(40, 0, -1) if len(tokens("a " * n)["input_ids"]) <= 16)
    fits, over = "a " * longest, "a " * (longest + 1)
    (line,) = check_rows("mine", reward, PromptSet([fits, over], [{}] * 2))
    assert line.endswith("(prompt 1)")


def test_prompts_that_imagereward_does_not_read_to_their_end_are_counted(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    reward = ImageReward(str(tmp_path / "none.pt"), str(tmp_path / "clip"))
    (line,) = check_rows("imagereward", reward, PromptSet(["a cat", "a " * 40], [{}] * 2))
    assert "1 of 2 prompts: longer than the 35 tokens" in line


@pytest.fixture
def reader() -> Any:
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    return resolve("ocr")


@pytest.mark.parametrize(
    ("prompt", "metadata", "doubt"),
    [
        ('a sign "HOT"', {}, None),
        ('a "12" jersey beside "GO 7"', {}, None),
        ("a sign 'Don't stop'", {}, None),
        ('a 12" pizza box labelled "HOT"', {}, "the text is taken to be 'HOT'"),
        ('a 12" pizza box labelled "HOT"', {"text": "HOT"}, None),
        ('a sign "HOT" and 5" nails', {}, "the text is taken to be 'HOT'"),
        ('a sign "HOT" and "COLD', {}, "the text is taken to be 'HOT'"),
        ('on a wall" the word "HOT" stands', {}, "are doubtful"),
        ("the '90s and 'HOT'", {}, "are doubtful"),
        ('a sign "Straße"', {}, "the reader does not know 'ß', so that the best picture of 'Straße' scores 0.83"),
    ],
)
def test_doubts_about_a_text_to_read(reader: Any, prompt: str, metadata: dict[str, Any], doubt: str | None) -> None:
    found = check_rows("ocr", reader, PromptSet([prompt], [metadata]))
    assert found == [] if doubt is None else doubt in found[0]


def test_what_the_reader_knows_is_its_dictionary_and_not_only_latin(reader: Any) -> None:
    assert check_rows("ocr", reader, PromptSet(['"Open 24/7!"', '"你好"', '"ÀÉ"'], [{}] * 3)) == []


TAGGED = PromptSet(["a", "b"], [{"tag": "x"}, {"tag": "y"}])


def checked(tags: dict[str, tuple[str, ...]], watched: tuple[str, ...] = (), **sets: PromptSet) -> list[str]:
    """check_run of rewards `one` and `two`, and the watched ones."""
    weights = {"one": 1.0, "two": 1.0}
    functions: dict[str, Reward] = dict.fromkeys((*weights, *watched), doubting)
    trained, evaluated = (RewardSet(weights, functions, watched=names, tags=tags) for names in ((), watched))
    return check_run(trained, evaluated, TAGGED, sets, lambda name: 4)


def test_a_tag_that_no_prompt_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"reward_tags has one=typo, and no prompt has the tag 'typo'.* Known: x, y"):
        checked({"one": ("x", "typo")})
    other = PromptSet(["c"], [{"tag": "z"}])
    with pytest.raises(UserError, match="the reward 'one' would train on nothing: no prompt that trains has"):
        checked({"one": ("z",)}, seen=other)
    checked({"one": ("x", "z")}, seen=other)
    checked({"held": ("z",)}, ("held",), seen=other)


def test_doubts_say_of_which_prompts() -> None:
    found = checked({}, seen=PromptSet(["long enough", "b"], [{}, {}]))
    assert found[0].startswith("prompts: one, 2 of 2 prompts: says little")
    assert found[2].startswith("eval_prompts seen: one, 1 of 2 prompts: says little (prompt 1)")


def test_images_that_are_compared_must_be_two() -> None:
    rewards = RewardSet({"one": 1.0}, {"one": doubting}, watched=("pixel_diversity",))
    with pytest.raises(UserError, match="eval_images_per_prompt=1, and pixel_diversity compares"):
        check_run(rewards, rewards, TAGGED, {"seen": TAGGED}, lambda name: 1)
    with pytest.raises(UserError, match="take 2 or more, also where eval_images gives unseen a number of its own"):
        check_run(rewards, rewards, TAGGED, {"seen": TAGGED, "unseen": TAGGED}, {"seen": 2, "unseen": 1}.__getitem__)
    check_run(rewards, rewards, TAGGED, {}, lambda name: 1)


def test_metadata_of_another_tag_is_not_asked_for() -> None:
    needy = requires("include")(lambda *_: torch.zeros(1))
    rewards = RewardSet({"needy": 1.0, "any": 1.0}, {"needy": needy, "any": doubting}, tags={"needy": ("x",)})
    rows = PromptSet(["aaa", "bbb"], [{"tag": "x", "include": []}, {"tag": "y"}], ["line 1 of f", "line 2 of f"])
    assert rewards.check(rows) == []
    with pytest.raises(UserError, match=r"needy|<lambda> reads include .*; line 2 of f has no include"):
        RewardSet({"needy": 1.0}, {"needy": needy}).check(rows)
