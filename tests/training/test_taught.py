"""People as a reward: what they pick is what is learned, at any number of kills, with other rewards or alone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from people import Answers, desk_of, reddest
from runs import colour, newest, rows, run, small, tensors

from dgpo import distributed
from dgpo.algorithms import FlowGRPO
from dgpo.commands.main import main
from dgpo.config import Config, Human
from dgpo.data.groups import GroupDataset
from dgpo.errors import RunFailed, UserError
from dgpo.rewards.base import RewardError
from dgpo.run import requests
from dgpo.run.callbacks import Callback, Progress
from dgpo.teach.desk import Asked, Desk
from dgpo.teach.groups import BLIND, Groups
from dgpo.teach.learned import Lessons, Updates
from dgpo.teach.picks import Choice, Picks
from dgpo.training.dry_run import dry_run
from dgpo.training.geometry import geometry, network_forwards
from dgpo.training.schedule import require_processes, sampling_forwards
from dgpo.types import Rollout

THINGS = ("cat", "dog", "cup", "bird", "car", "hat", "box", "pen", "key", "cow")
TEXTS = [f"a {colour} {thing}" for colour in ("red", "green") for thing in THINGS]
HUMAN = Human(ahead=2, reuse=0, blind_every=0, repeat_every=0, share_every=0)


class Rollouts(Callback):
    """Keeps what is trained on, and stops a run that has learned enough."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[Rollout] = []
        self._stop_after = stop_after

    def on_rollout(self, run: Progress, rollout: Rollout) -> None:
        self.seen.append(rollout)

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        if run.iteration == self._stop_after:
            run.stop()


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> Config:
    """Three updates of two groups of three pictures, judged by a person alone."""
    return small(tiny_folder, tmp_path / "run", rewards={"human": 1.0}, human=HUMAN)


def taught(config: Config, *callbacks: Callback, resume: bool = False, **options):
    return run(config, resume=resume, callbacks=callbacks, reward_functions={}, **options)


def test_what_is_picked_is_what_is_rewarded(config):
    seen, person = Rollouts(), Answers()
    assert taught(config, person, seen).iterations == 3
    groups, desk = Groups(Path(config.out)), desk_of(Path(config.out))
    numbers = [number for update in Updates(Path(config.out)).all() for number in update.new]
    assert numbers == [asked.group.number for asked in person.asked[:6]]
    for place, number in enumerate(numbers):
        rollout, rows_of = seen.seen[place // 2], slice(3 * (place % 2), 3 * (place % 2) + 3)
        (pick,) = desk.lessons.picks.of(number)
        assert rollout.rewards[rows_of].tolist() == pick.choice.rewards(3)
        assert rollout.scores["human"][rows_of].tolist() == pick.choice.rewards(3)
        assert torch.equal(rollout.x0[rows_of], groups.x0(number))
        assert rollout.prompts[rows_of] == [groups.all()[number].prompt] * 3
    assert all(rollout.advantages.abs().sum() > 0 for rollout in seen.seen)


def test_a_group_is_drawn_by_the_seed_and_its_number(config, tmp_path):
    taught(config, Answers())
    other = replace(config, out=str(tmp_path / "other"))
    taught(other, Answers())
    one, two = Groups(Path(config.out)), Groups(Path(other.out))
    assert torch.equal(one.x0(0), two.x0(0))
    assert one.all()[0] == two.all()[0]
    assert not torch.equal(one.x0(0), one.x0(1))


def test_groups_are_ahead_of_the_answers(config):
    waiting = []

    class Looks(Callback):
        def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
            if phase == "waiting for answers":
                waiting.append(len(Lessons(run.folder, run.config.rewards).waiting()))
                if len(waiting) > 5:
                    run.stop()

    config = replace(config, human=replace(HUMAN, ahead=4))
    assert taught(config, Looks()).interrupted
    assert waiting == [0, 1, 2, 3, 4, 4]


def test_what_was_drawn_before_a_stop_is_counted_after_it(config):
    """Groups that wait for an answer when the run stops were drawn for its next update."""

    class StopsWhileWaiting(Callback):
        def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
            if run.iteration == 1 and len(Lessons(run.folder, run.config.rewards).waiting()) == 4:
                run.stop()

    algorithm = replace(config.algorithm, clip_range=None)  # then all updates take as many forwards
    config = replace(config, human=replace(HUMAN, ahead=4), algorithm=algorithm)
    assert taught(config, Answers(most=2), StopsWhileWaiting()).interrupted
    waiting = len(Groups(Path(config.out)).all()) - 2
    assert waiting >= 4
    assert taught(config, Answers(), resume=True).iterations == 3
    drawn = len(Groups(Path(config.out)).all())
    more = 3 * (drawn - 3 * config.num_groups) * sampling_forwards(config)  # three pictures each
    assert rows(Path(config.out))[-1]["train/forwards"] == 3 * network_forwards(config) + more


def test_a_reward_that_concerns_no_group_of_an_update_says_nothing(config, tmp_path):
    """Beside people, and with each reward normalised in its groups: a score that no group has is none."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "tag": "y" if place else "x"}) for place, text in enumerate(TEXTS)]
    prompts.write_text("\n".join(lines))
    config = replace(
        config,
        prompts=str(prompts),
        rewards={"human": 1.0, "colour": 1.0},
        reward_tags={"colour": ("x",)},
        reward_normalization="group",
    )
    seen = Rollouts()
    assert run(config, callbacks=[Answers(), seen], reward_functions={"colour": colour}).iterations == 3
    assert any("colour" not in rollout.scores for rollout in seen.seen)


@pytest.mark.slow
def test_earlier_groups_may_be_split_over_processes(config):
    """Then the gradient of a group is on none of them, and the noise scale is not measured."""
    config = replace(config, noise_scale_every=1, human=replace(HUMAN, reuse=1))
    ranks.together(2, _teach, config)
    measured = ["train/grad_noise_scale" in row for row in rows(Path(config.out))]
    assert measured == [True, False, False], "two groups, then three, on two processes"


def _teach(config: Config) -> None:
    taught(config, *([Answers()] if distributed.is_main() else []))


def test_earlier_groups_train_again(config):
    seen = Rollouts()
    taught(replace(config, human=replace(HUMAN, reuse=3)), Answers(), seen)
    updates = Updates(Path(config.out)).all()
    assert [len(update.earlier) for update in updates] == [0, 2, 3]
    assert {*updates[1].earlier} == {*updates[0].new}
    assert {*updates[2].earlier} < {*updates[0].new, *updates[1].new}
    assert [rollout.num_groups for rollout in seen.seen] == [2, 4, 5]
    assert [len(rollout.prompts) for rollout in seen.seen] == [6, 12, 15]


def test_an_answer_without_a_preference_is_not_waited_for_with_others(config):
    same = iter([Choice(same=True), Choice(skip=True)] * 2)
    first = Answers(lambda desk, asked: next(same, Choice(good=(0,))))
    taught(config, first)
    learned = [number for update in Updates(Path(config.out)).all() for number in update.new]
    assert learned == [asked.group.number for asked in first.asked[4:10]]


def test_other_rewards_are_added_to_what_people_say(config):
    seen = Rollouts()
    config = replace(config, rewards={"human": 2.0, "runs:colour": 0.5}, iterations=1)
    taught(config, Answers(), seen)
    (rollout,) = seen.seen
    human, colour = rollout.scores["human"], rollout.scores["runs:colour"]
    assert torch.allclose(rollout.rewards, 2 * human + 0.5 * colour)
    assert colour.std() > 0
    assert {"train/score/human", "train/score/runs:colour"} <= rows(Path(config.out))[0].keys()


def test_base_and_trained_model_are_compared_on_prompts_that_never_train(config, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    config = replace(
        config,
        prompts=str(tmp_path / "texts.txt"),
        eval_prompts={"held_out": "prompts:held_out"},
        eval_every=2,
        eval_images_per_prompt=1,
        num_samples=2,
        iterations=5,
        optimizer=replace(config.optimizer, lr=3e-2),
        human=replace(HUMAN, blind_every=2),
    )
    person = Answers()
    taught(config, person)
    groups = Groups(Path(config.out)).all()
    blind = [group for group in groups.values() if group.kind == BLIND]
    assert 2 <= len(blind) <= 5
    assert not {group.prompt for group in blind} & {group.prompt for group in groups.values() if group.kind != BLIND}
    assert all(group.size == 2 and group.images[0] != group.images[1] and group.iteration > 0 for group in blind)
    assert not any(
        (Path(config.out) / "teach" / f"{group.number:06d}" / "latents.safetensors").exists() for group in blind
    )
    assert {asked.question.asked for asked in person.asked} == {"train", "blind"}


def test_the_sides_of_a_comparison_are_of_chance():
    from dgpo.core import seeds

    sides = [int(torch.randint(2, (1,), generator=seeds.generator(0, "sides", number))) for number in range(200)]
    assert 70 < sum(sides) < 130


def test_a_run_without_other_rewards_keeps_pictures_and_no_best(config, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    config = replace(
        config,
        eval_prompts={"fixed": str(tmp_path / "texts.txt")},
        eval_every=1,
        eval_images_per_prompt=1,
        num_samples=3,
    )
    result = taught(config, Answers())
    folder = Path(config.out)
    assert "eval/fixed/reward" not in result.metrics
    assert "eval/fixed/drift" in result.metrics
    assert [len([*path.glob("*.png")]) for path in sorted((folder / "samples").glob("iteration-[0-9]*/"))] == [3] * 4
    assert (folder / "final").is_dir()
    assert not (folder / "best").exists()


def test_a_signal_and_a_request_are_heard_while_it_waits(config):
    class Signals(Callback):
        def on_start(self, run: Progress) -> None:
            def soon() -> None:
                time.sleep(1.0)
                requests.ask(run.folder, requests.SAVE)
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=soon, daemon=True).start()

    result = taught(config, Signals())
    assert result.interrupted
    assert result.iterations == 0
    assert newest(Path(config.out)) == 0


def test_a_resumed_run_learns_from_every_answer_once_as_new(config):
    folder = Path(config.out)
    taught(config, Answers(), Rollouts(stop_after=1))
    before = [*Picks(folder).all()]
    # answers that came after the checkpoint, and an update that it does not know
    Updates(folder).path.write_text(
        Updates(folder).path.read_text() + '{"iteration": 1, "new": [2, 3], "earlier": []}\n'
    )
    desk = desk_of(folder)
    while (asked := desk.next("ana")) is not None:
        desk.answer(asked.question, Choice(good=(1,)))
    result = taught(config, Answers(), resume=True)
    assert result.iterations == 3
    assert not result.interrupted
    updates = Updates(folder).all()
    assert [update.iteration for update in updates] == [0, 1, 2]
    learned = [number for update in updates for number in update.new]
    assert len({*learned}) == len(learned) == 6
    assert [*Picks(folder).all()][: len(before)] == before
    numbers = [*Groups(folder).all()]
    assert numbers == [*range(len(numbers))]


def test_the_same_answers_train_the_same_weights(config, tmp_path):
    def choose(desk: Desk, asked: Asked) -> Choice:
        return Choice(good=(asked.group.number % 3,))

    # the groups of a run depend on when answers come; with all drawn before the first answer they do not
    config = replace(config, iterations=1, human=replace(HUMAN, ahead=4))
    for name in ("one", "two"):
        taught(replace(config, out=str(tmp_path / name)), Answers(choose))
    one, two = tensors(tmp_path / "one", 1), tensors(tmp_path / "two", 1)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_latents_that_are_gone_are_told_or_left_out(config):
    taught(config, Answers(), Rollouts(stop_after=1))
    folder = Path(config.out)
    broken, gone = (
        folder / "teach" / "000000" / "latents.safetensors",
        folder / "teach" / "000001" / "latents.safetensors",
    )
    gone.unlink()
    lessons = Lessons(folder, config.rewards)
    assert 1 not in lessons.teaching()
    broken.write_bytes(b"x")
    with pytest.raises(UserError, match=r"latents .*000000/latents.safetensors of a group that was answered"):
        lessons.groups.x0(0)


def test_answers_are_written_as_a_dataset_that_trains(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taught(config, Answers())
    folder = tmp_path / "picked"
    assert main(["picks", config.out, "--out", str(folder)]) == 0
    dataset, lessons = GroupDataset(folder), Lessons(Path(config.out), config.rewards)
    numbers = lessons.teaching()
    assert len(dataset) == len(numbers) >= 6
    assert [dataset.rewards(i).tolist() for i in range(len(dataset))] == [
        lessons.picks.of(number)[0].choice.rewards(3) for number in numbers
    ]
    lines = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len(numbers)
    assert {line["sha256"] for line in lines} == {h for n in numbers for h in lessons.groups.all()[n].images}
    assert all((folder / line["file"]).is_file() for line in lines)
    assert sum(line["good"] for line in lines) == len(numbers)
    offline = replace(config, rewards={}, offline=str(folder), out=str(tmp_path / "offline"), prompts=(), iterations=1)
    assert run(offline, reward_functions={}).iterations == 1
    assert main(["picks", config.out, "--out", str(folder)]) == 2
    assert "exists and is not replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algorithm": FlowGRPO(), "sampling": None}, "FlowGRPO learns only from rollouts of its own"),
        ({"eval_rewards": ("human",)}, "eval_rewards cannot name human"),
        ({"reward_failures": {"human": "drop"}}, "cannot name human"),
        ({"reward_tags": {"human": ("cat",)}}, "cannot name human"),
        ({"offline": "groups"}, "brings its rewards, and nothing is drawn"),
        ({"drop_equal_groups": True, "redraw_groups": 1}, "redraw_groups=1 draws groups again"),
        ({"human": Human(ahead=0)}, "human.ahead=0 cannot work: it must be at least 1"),
        ({"human": Human(reuse=-1)}, "human.reuse=-1 cannot work"),
    ],
)
def test_settings_that_contradict_a_person_are_refused(config, changes, told):
    if changes.get("sampling", 1) is None:
        changes = {**changes, "sampling": replace(config.sampling, guidance_scale=1.0)}
    with pytest.raises(UserError, match=told):
        replace(config, **changes)


def test_a_person_scores_no_pictures_that_are_there(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    assert main(["score", str(tmp_path), "--rewards", "human=1"]) != 0
    assert "human is a person who is asked while a model trains" in capsys.readouterr().err


def test_a_function_in_python_stands_in_for_people(config):
    assert (
        run(config, reward_functions={"human": lambda images, prompts, metadata: images.mean((1, 2, 3))}).iterations
        == 3
    )
    assert not (Path(config.out) / "picks.jsonl").exists()


def test_a_dry_run_asks_nobody(config):
    lines = dry_run(config)
    assert any("update(s) by DGPO: loss and gradient finite" in line for line in lines)
    assert any("nobody was asked" in line for line in lines)


def test_a_run_nobody_picked_in_has_nothing_to_write(finished_run, capsys):
    assert main(["picks", str(finished_run), "--out", "picked"]) == 2
    assert "nobody has picked a picture in it" in capsys.readouterr().err
    assert main(["train", "--offline", str(finished_run)]) == 2


def test_the_plan_counts_the_earlier_groups(config):
    alone = geometry(replace(config, human=replace(HUMAN, reuse=0)), 1)
    with_earlier = geometry(replace(config, human=replace(HUMAN, reuse=3)), 1)
    assert (alone.drawn, alone.update_images) == (6, 6)
    assert (with_earlier.drawn, with_earlier.update_images) == (6, 15)
    more = network_forwards(replace(config, human=replace(HUMAN, reuse=2))) - network_forwards(config)
    assert more == network_forwards(config) - 2 * 3 * 3 * 2  # two groups more train, of two; none more is drawn


def test_a_reward_for_some_prompts_only_adds_nothing_elsewhere(config, tmp_path):
    lines = [{"prompt": text, "tag": "cat" if "cat" in text else "other"} for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen, person = Rollouts(), Answers()
    config = replace(
        config,
        prompts=str(tmp_path / "texts.jsonl"),
        rewards={"human": 1.0, "runs:colour": 0.5},
        reward_tags={"runs:colour": ("cat",)},
        num_groups=12,
        iterations=1,
        human=replace(HUMAN, ahead=len(TEXTS)),
    )
    taught(config, person, seen)
    (rollout,) = seen.seen
    of_cats = torch.tensor(["cat" in prompt for prompt in rollout.prompts])
    human, colour = rollout.scores["human"], rollout.scores["runs:colour"]
    assert of_cats.any()
    assert not of_cats.all()
    assert torch.equal(colour.isnan(), ~of_cats)
    assert torch.allclose(rollout.rewards, human + 0.5 * colour.nan_to_num())


def test_a_reward_that_drops_every_group_ends_the_run_and_says_why(config):
    config = replace(config, rewards={"human": 1.0, "runs:fails": 1.0}, reward_failures={"runs:fails": "drop"})
    with pytest.raises(RewardError, match=r"10 groups in a row had a picture that got no reward"):
        taught(config, Answers())
    assert newest(Path(config.out)) == 0


def test_one_damaged_group_does_not_stop_a_run(config, capsys):
    folder = Path(config.out)
    taught(config, Answers(), Rollouts(stop_after=1))
    about = folder / "teach" / "000000" / "group.json"
    about.write_text("{")
    assert taught(config, Answers(), resume=True).iterations == 3
    assert f"warning: the run goes on without a group: {about} is not JSON" in capsys.readouterr().out
    assert about.read_text() == "{"


def test_a_run_whose_waiting_groups_lose_their_pictures_draws_others(config):
    class Loses(Callback):
        def on_start(self, run: Progress) -> None:
            self.lost = 0

        def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
            for path in run.folder.glob("teach/00000[01]/0.png"):
                path.unlink()
                self.lost += 1

    loses, person = Loses(), Answers()
    assert taught(replace(config, iterations=1), loses, person).iterations == 1
    assert loses.lost


def test_a_person_turns_to_the_next_group_where_a_picture_vanishes_while_they_look(config):
    looked: list[int] = []

    def choose(desk: Desk, asked: Asked) -> Choice:
        looked.append(asked.group.number)
        if asked.group.number < 2:
            (desk.lessons.groups.folder / f"{asked.group.number:06d}" / "0.png").unlink()
        return reddest(desk, asked)

    person = Answers(choose)
    assert taught(replace(config, iterations=1), person).iterations == 1
    assert {0, 1} <= {*looked}
    assert {0, 1}.isdisjoint(asked.group.number for asked in person.asked)


def test_what_fails_of_a_person_fails_the_run_that_waits_for_them(config):
    def choose(desk: Desk, asked: Asked) -> Choice:
        raise ZeroDivisionError("of a person")

    with pytest.raises(RunFailed, match="of a person"):
        taught(config, Answers(choose))


def test_no_time_is_foretold_where_people_decide_it(config, capsys):
    taught(config, Answers())
    printed = capsys.readouterr().out
    assert "iteration 3/3" in printed
    assert f"or at: dgpo studio {config.out}" in printed
    assert " left" not in printed


def test_waiting_for_people_is_no_time_of_training(config):
    class Slow(Answers):
        def on_start(self, run: Progress) -> None:
            self._begin = threading.Timer(2.0, super().on_start, [run])
            self._begin.start()

        def on_end(self, run: Progress) -> None:
            self._begin.join()
            super().on_end(run)

    began = time.perf_counter()
    taught(replace(config, iterations=1), Slow())
    whole = time.perf_counter() - began
    row = json.loads((Path(config.out) / "metrics.jsonl").read_text())
    assert row["time/elapsed"] == row["time/iteration"] < whole - 2


def test_the_way_on_is_the_one_with_the_page(config):
    class Fails(Callback):
        def on_rollout(self, run: Progress, rollout: Rollout) -> None:
            raise ValueError("no")

    with pytest.raises(RunFailed, match=f"Go on from there with: dgpo teach --resume {config.out}"):
        taught(config, Answers(), Fails())


def test_more_processes_than_pictures_of_a_group_are_refused(config):
    require_processes(config, 3)
    with pytest.raises(UserError, match=r"the 3 images of one cannot occupy 4 processes"):
        require_processes(config, 4)


def test_an_evaluation_says_that_nobody_is_asked(config, capsys):
    taught(replace(config, iterations=1), Answers())
    assert main(["eval", config.out, "--eval-prompts", "some=prompts:trained", "--no-compare"]) == 0
    assert "human: nobody is asked here; the win rate on the page" in capsys.readouterr().out
