"""A run that names no evaluation set evaluates its own prompts, and says how far it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from runs import assert_same_run, colour, run, small

import dgpo
from dgpo import UserError
from dgpo.config import AUTOMATIC, HELD_OUT, TRAINED, load_yaml
from dgpo.data.own_prompts import part
from dgpo.data.prompts import load_prompts
from dgpo.run.callbacks import Callback
from dgpo.run.prompt_lists import read
from dgpo.training.apply import config_of
from dgpo.types import Rollout

pytestmark = pytest.mark.slow

MANY = tuple(f"a {colour} {thing}" for colour in ("red", "green", "blue", "grey", "pink") for thing in "abcd")


class Heard(Callback):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.progress: list[tuple[str, int, int]] = []
        self.trained: set[str] = set()
        self.evaluated: list[dict[str, float]] = []

    def on_progress(self, run, phase, done, total) -> None:
        self.progress.append((phase, done, total))

    def on_rollout(self, run, rollout: Rollout) -> None:
        self.trained |= {*rollout.prompts}

    def on_evaluation(self, run, evaluated) -> None:
        self.evaluated.append(evaluated.metrics)


def own(model: Path, out: Path, **changes):
    fields = {"prompts": MANY, "eval_prompts": AUTOMATIC, "eval_every": 2, "num_samples": 1, **changes}
    return small(model, out, **fields)


def test_what_is_held_out_never_trains_and_a_resume_knows_it(tiny_folder: Path, tmp_path: Path) -> None:
    heard = Heard()
    config = own(tiny_folder, tmp_path / "whole", iterations=4, num_groups=8, group_size=2)
    run(config, callbacks=[heard])
    assert [sorted(k for k in m if k.endswith("/reward")) for m in heard.evaluated] == [["eval/held_out/reward"]] * 3
    assert len(heard.trained) == 16, "two rollouts of eight prompts are an epoch of those left"
    stored = load_yaml(tmp_path / "whole" / "config.yaml")
    assert stored.eval_prompts == {"held_out": HELD_OUT}

    parted = replace(config, out=str(tmp_path / "parted"))
    run(replace(parted, iterations=2))
    run(parted, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 4)


@pytest.fixture
def file_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one iteration whose prompts are many.txt."""
    monkeypatch.chdir(tmp_path)
    Path("many.txt").write_text("\n".join(MANY))
    run(own(tiny_folder, tmp_path / "run", prompts="many.txt", iterations=1))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ((*MANY, "a new cat"), "the prompts that train are not those that .*run began with: 17 now, 16 then"),
        (("a new cat", *MANY[1:]), "are not those that .*run began with"),
    ],
)
def test_a_resume_with_other_prompts_in_the_file_is_refused(file_run: Path, changed: tuple[str, ...], message: str):
    config = replace(load_yaml(file_run / "config.yaml"), iterations=2)
    before = (file_run / "prompts.json").read_text()
    Path("many.txt").write_text("\n".join(changed))
    with pytest.raises(UserError, match=message):
        run(config, resume=True)
    assert (file_run / "prompts.json").read_text() == before
    Path("many.txt").write_text("\n".join(MANY))
    assert run(config, resume=True).iterations == 2


def test_a_resume_with_an_edited_evaluation_set_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.txt"
    test.write_text("a cat\na dog")
    config = own(tiny_folder, tmp_path / "run", eval_prompts={"test": str(test)}, iterations=1)
    run(config)
    test.write_text("a cat\na cow")
    with pytest.raises(UserError, match="the evaluation set test are not those that"):
        run(replace(config, iterations=2), resume=True)


def test_an_earlier_run_that_kept_no_hashes_goes_on_and_keeps_them(file_run: Path) -> None:
    (file_run / "prompts.json").unlink()
    assert run(replace(load_yaml(file_run / "config.yaml"), iterations=2), resume=True).iterations == 2
    assert {*read(file_run)} == {"train", "eval/held_out"}


class Seen:
    """A reward that keeps the prompts it scores."""

    def __init__(self) -> None:
        self.prompts: set[str] = set()

    def __call__(self, images, prompts, metadata):
        self.prompts |= {*prompts}
        return colour(images, prompts, metadata)


def test_another_seed_evaluates_the_prompts_that_the_run_held_out(file_run: Path) -> None:
    config = config_of(file_run)
    held_out = {*part(config, load_prompts("many.txt")).evaluated["held_out"].prompts}
    for seed in (0, 1, 7):
        seen = Seen()
        functions = {"colour": seen}
        dgpo.evaluate(file_run, replace(config, seed=seed), compare=False, reward_functions=functions)
        assert seen.prompts == held_out


def test_what_a_run_held_out_is_not_collected(file_run: Path, tmp_path: Path) -> None:
    config = config_of(file_run)
    trained = {*part(config, load_prompts("many.txt")).trained.prompts}
    for seed in (0, 5):
        seen = Seen()
        collected = replace(config, seed=seed, group_size=2)
        out = tmp_path / f"groups-{seed}"
        dgpo.collect(file_run, collected, groups=16, out=out, reward_functions={"colour": seen})
        assert seen.prompts == trained
    seen = Seen()
    others = replace(config, prompts=("a mat", "a hat"), group_size=2)
    dgpo.collect(file_run, others, groups=2, out=tmp_path / "others", reward_functions={"colour": seen})
    assert seen.prompts == {"a mat", "a hat"}, "prompts that are given are drawn as they are"


def test_what_was_held_out_is_not_guessed_from_a_file_that_has_changed(file_run: Path, tmp_path: Path) -> None:
    config, functions = config_of(file_run), {"colour": colour}
    held_out = part(config, load_prompts("many.txt")).evaluated["held_out"].prompts
    Path("many.txt").write_text("\n".join(text for text in (*MANY, "a new cat") if text != held_out[0]))
    with pytest.raises(UserError, match=r"evaluate another list: --eval-prompts test=FILE"):
        dgpo.evaluate(file_run, config, reward_functions=functions)
    with pytest.raises(UserError, match=r"give other prompts: --prompts FILE"):
        dgpo.collect(file_run, config, groups=1, out=tmp_path / "groups", reward_functions=functions)
    assert not (tmp_path / "groups").exists()


def test_the_automatic_set_beside_another_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("a cup\n")
    sets = {**AUTOMATIC, "test": str(tmp_path / "test.txt")}
    config = own(tiny_folder, tmp_path / "run", eval_prompts=sets, eval_images={"held_out": 1}, iterations=1)
    run(config)
    heard = Heard()
    run(replace(config, iterations=2), resume="auto", callbacks=[heard])
    assert {"eval/held_out/reward", "eval/test/reward"} <= heard.evaluated[-1].keys()
    assert load_yaml(tmp_path / "run" / "config.yaml").eval_prompts == {"held_out": HELD_OUT, "test": sets["test"]}


def test_few_prompts_are_trained_and_evaluated(tiny_folder: Path, tmp_path: Path) -> None:
    run(own(tiny_folder, tmp_path / "run", prompts=MANY[:5], iterations=1))
    assert load_yaml(tmp_path / "run" / "config.yaml").eval_prompts == {"trained": TRAINED}


def test_an_earlier_run_without_evaluations_goes_on_without(tiny_folder: Path, tmp_path: Path) -> None:
    config = own(tiny_folder, tmp_path / "run", iterations=1)
    run(replace(config, eval_prompts={}))
    heard = Heard()
    run(replace(config, iterations=2), resume=True, callbacks=[heard])
    assert heard.evaluated == []
    assert load_yaml(tmp_path / "run" / "config.yaml").eval_prompts == {}


@pytest.mark.parametrize("free", [False, True])
def test_every_phase_tells_how_far_it_is(tiny_folder: Path, tmp_path: Path, free: bool) -> None:
    heard, batch = Heard(), 4
    config = own(tiny_folder, tmp_path / "run", iterations=1, free_text_encoders=free, micro_batch_size=3)
    run(replace(config, sampling=replace(config.sampling, batch_size=batch)), callbacks=[heard])
    counts: dict[str, list[tuple[int, int]]] = {}
    for phase, done, total in heard.progress:
        counts.setdefault(phase, []).append((done, total))
    assert counts["evaluating"] == [(done, 8) for done in (0, 4, 8)] * 2, "before and after"
    assert counts["sampling"] == [(done, 6) for done in (0, 4, 6)]
    assert counts["updating"] == [(done, 4) for done in range(5)], "two points, two micro-batches"
    assert counts["scoring"] == [(0, 0)]
    assert {"saving", "reporting"} <= counts.keys()
    if free:
        assert counts["encoding"] == [(0, 21), (16, 21)], "all prompts and the empty one, sixteen at a time"
    else:
        assert counts["encoding"] == [(n, 4) for n in range(4)] + [(0, 2), (1, 2)], "when they are first drawn"
