"""Which images of a rollout train: dropped and redrawn groups, extremes, parts of a batch, empty prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from runs import PROMPTS, ROUNDING, assert_same_run, colour, distance, newest, rows, run, small, tensors
from updates import source_of, updates

from dgpo import DGPO, Config, UserError, load_prompts
from dgpo.algorithms import AWM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.data.sampler import PromptSampler
from dgpo.models.text_cache import CondCache
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.run import checkpoint
from dgpo.training.compare import constant_scores
from dgpo.training.geometry import network_forwards
from dgpo.training.metrics import describe
from dgpo.training.optim import make_optimizer
from dgpo.training.state import State
from dgpo.training.update import improve, share_of_update, to_train

pytestmark = pytest.mark.slow

POINTS = 2
FREE_OF_KL = DGPO(beta=3.0, kl_coef=0.0, clip_range=None, num_points=POINTS, trunc_steps=2)


def flat_for(*flat: str) -> Any:
    """The colour reward, but the same for every image of these prompts."""

    def reward(images, prompts, metadata):
        return torch.where(torch.tensor([prompt in flat for prompt in prompts]), 0.5, colour(images, prompts, metadata))

    return reward


def rollout_of(model, config, reward=colour, sampler=None):
    """The first rollout of a run."""
    prompts = load_prompts(config.prompts)
    sampler = sampler or PromptSampler(len(prompts), config.seed)
    return source_of(model, config, RewardSet({"colour": 1.0}, {"colour": reward}), prompts, sampler).next(0)


def order(config) -> list[str]:
    """The prompts of a run in the order in which they are drawn."""
    return [config.prompts[i] for i in PromptSampler(len(config.prompts), config.seed).next(len(config.prompts))]


def test_equal_groups_are_dropped_without_a_change_of_the_gradient(fresh, tiny_folder, tmp_path):
    """Where no KL acts on them; and nothing is computed for them."""
    config = small(tiny_folder, tmp_path, algorithm=FREE_OF_KL)
    reward = flat_for(order(config)[0])
    found, images = [], []
    for drop in (False, True):
        model, own = fresh(config, apart=True), replace(config, drop_equal_groups=drop)
        rollout = rollout_of(model, own, reward)
        model.images = Counter()
        ((gradients, metrics),) = updates(model, to_train(rollout, CondCache(model), own), own, State())
        found.append(gradients)
        images.append(dict(model.images))
        assert rollout.trained.tolist() == [not drop] * 3 + [True] * 3
        assert rollout.group_sizes.tolist() == [0 if drop else 3, 3]
        assert metrics["train/grad_norm"] > 0
    assert distance(found[1], found[0]) < ROUNDING
    assert images[0] == {("policy", 1.0, True): 6 * POINTS, ("ref", 1.0, False): 6 * POINTS}
    assert images[1] == {("policy", 1.0, True): 3 * POINTS, ("ref", 1.0, False): 3 * POINTS}


def test_the_extremes_of_each_group_train(fresh, tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path, algorithm=FREE_OF_KL, group_size=5)
    model = fresh(config, apart=True)
    everyone, chosen = (rollout_of(model, replace(config, train_images=keep)) for keep in (None, 2))
    part = to_train(chosen, CondCache(model), config)
    assert chosen.group_sizes.tolist() == [2, 2]
    assert part.group_index.tolist() == [0, 0, 1, 1]
    for group in range(2):
        own, kept = everyone.rows(everyone.group_index == group), part.rows(part.group_index == group)
        assert set(kept.rewards.tolist()) == {own.rewards.max().item(), own.rewards.min().item()}
        half = (own.advantages.max() - own.advantages.min()).item() / 2
        assert sorted(kept.advantages.tolist()) == pytest.approx([-half, half])
        assert abs(kept.advantages.sum()) < 1e-6
    model.images = Counter()
    updates(model, part, config, State())
    assert model.images["policy", 1.0, True] == 4 * POINTS


@pytest.mark.parametrize("algorithm", [FREE_OF_KL, DiffusionDPO(num_points=POINTS)], ids=["dgpo", "its own pair"])
def test_a_group_trains_whole_that_has_no_more_images_than_train(algorithm, fresh, tiny_folder, tmp_path):
    """A recipe's train_images stands beside any group size and any algorithm."""
    config = small(tiny_folder, tmp_path, algorithm=algorithm, group_size=3)
    without, beside = (rollout_of(fresh(config), replace(config, train_images=keep)) for keep in (None, 6))
    assert beside.trained.tolist() == without.trained.tolist()
    assert beside.group_sizes.tolist() == without.group_sizes.tolist()
    torch.testing.assert_close(beside.advantages, without.advantages)
    assert network_forwards(replace(config, train_images=6)) == network_forwards(config)


def test_new_prompts_are_drawn_in_place_of_equal_groups(fresh, tiny_folder, tmp_path):
    """The first prompt and the next two that replace it are flat: the last of these stays, and does not train."""
    config = small(tiny_folder, tmp_path, algorithm=FREE_OF_KL, drop_equal_groups=True, redraw_groups=2)
    first, second, third, fourth, _ = order(config)
    sampler = PromptSampler(len(PROMPTS), config.seed)
    rollout = rollout_of(fresh(config), config, flat_for(first, third, fourth), sampler)
    rollout = rollout.rows(rollout.image_index.argsort())
    assert rollout.prompts == [second] * 3 + [fourth] * 3
    assert rollout.group_index.tolist() == [1, 1, 1, 0, 0, 0]
    assert rollout.image_index.tolist() == [3, 4, 5, 12, 13, 14], "an image of a later draw has noise of its own"
    assert rollout.trained.tolist() == [True] * 3 + [False] * 3
    assert rollout.group_sizes.tolist() == [0, 3]
    assert sampler.position == 4

    sampler = PromptSampler(len(PROMPTS), config.seed)
    rollout = rollout_of(fresh(config), config, flat_for(first), sampler)
    assert sorted(set(rollout.prompts)) == sorted([second, third])
    assert rollout.trained.all()
    assert rollout.advantages[rollout.group_index == 0].abs().max() > 0.1
    assert sampler.position == 3, "what is needed is drawn, and no more"


def test_metrics_are_of_all_images_that_were_drawn(fresh, tiny_folder, tmp_path):
    """The first prompt and the second that replaces it are flat and gone; the third is flat and stays."""
    config = small(tiny_folder, tmp_path, algorithm=FREE_OF_KL, drop_equal_groups=True, redraw_groups=2)
    first, _, third, fourth, _ = order(config)
    drawn = []

    def seen(images, prompts, metadata):
        drawn.extend(flat_for(first, third, fourth)(images, prompts, metadata).tolist())
        return torch.tensor(drawn[-len(images) :])

    metrics = describe(rollout_of(fresh(config), config, seen), config)
    assert len(drawn) == 4 * 3
    assert metrics["train/reward_mean"] == pytest.approx(sum(drawn) / 12)
    assert metrics["train/reward_std"] == pytest.approx(torch.tensor(drawn).std().item())
    assert metrics["train/score/colour"] == pytest.approx(sum(drawn) / 12)
    assert metrics["train/frac_reward_zero_std"] == 3 / 4
    assert metrics["train/frac_trained"] == 3 / 12


def test_groups_that_replace_equal_ones_tell_constant_rewards_apart(fresh, tiny_folder, tmp_path):
    """Each prompt has one score for all of its images, so that the one that stays says nothing of the reward."""
    config = small(tiny_folder, tmp_path, num_groups=1, drop_equal_groups=True, redraw_groups=1)

    def of_prompt(images, prompts, metadata):
        return torch.tensor([float(PROMPTS.index(prompt)) for prompt in prompts])

    rollout = rollout_of(fresh(config), config, of_prompt)
    assert len(set(rollout.scores["colour"].tolist())) == 1
    assert constant_scores(rollout, config) == {}


@pytest.mark.slow
def test_a_run_that_redraws_resumes_bit_for_bit(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "whole", iterations=3, drop_equal_groups=True, redraw_groups=1)
    reward = {"colour": flat_for("two dogs", "a cup", "green")}
    run(config, reward_functions=reward)
    parts = replace(config, out=str(tmp_path / "parts"))
    run(replace(parts, iterations=2), reward_functions=reward)
    run(parts, resume=True, reward_functions=reward)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 3)
    _, state = checkpoint.load(tmp_path / "whole" / "checkpoints" / "iteration-000003")
    assert state["position"] > 3 * config.num_groups
    drawn = (2, 3, 4)  # groups
    shares = {k / n for n in drawn for k in (0, 1, 2)}
    assert {row["train/frac_trained"] for row in rows(tmp_path / "whole")} <= shares


def test_a_rollout_of_equal_groups_takes_no_step_and_the_run_goes_on(tiny_folder, tmp_path):
    calls = []

    def second(images, prompts, metadata):
        calls.append(prompts)
        return colour(images, prompts, metadata) if len(calls) == 2 else torch.full((len(images),), 0.5)

    config = small(tiny_folder, tmp_path / "run", drop_equal_groups=True, keep_checkpoints=9)
    assert run(config, reward_functions={"colour": second}).iterations == 3
    steps = [checkpoint.load(tmp_path / "run" / "checkpoints" / f"iteration-00000{i}")[1]["step"] for i in (0, 1, 2, 3)]
    assert steps == [0, 0, 1, 1]
    weights = [tensors(tmp_path / "run", i) for i in (0, 1, 2, 3)]
    moved = [any(not torch.equal(after[key], before[key]) for key in before) for before, after in pairwise(weights)]
    assert moved == [False, True, False]
    logged = rows(tmp_path / "run")
    assert [row["train/frac_trained"] for row in logged] == [0.0, 1.0, 0.0]
    assert ["train/loss" in row for row in logged] == [False, True, False]


def test_updates_may_have_their_own_part_of_the_images(fresh, tiny_folder, tmp_path):
    config = small(
        tiny_folder, tmp_path, algorithm=AWM(num_points=POINTS), group_size=4, updates_per_rollout=2, split_updates=True
    )
    model, state = fresh(config), State()
    rollout = rollout_of(model, config)
    parts = [share_of_update(rollout, update, config) for update in (0, 1)]
    assert [part.image_index.tolist() for part in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [part.group_sizes.tolist() for part in parts] == [[2, 2], [2, 2]]
    model.images = Counter()
    improve(model, make_optimizer(model, config), rollout, state, config)
    assert state.step == 2
    assert model.images["policy", 1.0, True] == 8 * POINTS
    model.images = Counter()
    improve(model, make_optimizer(model, config), rollout, state, replace(config, split_updates=False))
    assert model.images["policy", 1.0, True] == 16 * POINTS


def test_an_update_whose_part_holds_no_image_changes_no_weight(fresh, tiny_folder, tmp_path):
    """As on a process whose groups were all dropped; the other update takes its step."""
    algorithm = AWM(num_points=POINTS)
    config = small(tiny_folder, tmp_path, algorithm=algorithm, updates_per_rollout=2, split_updates=True)
    config = replace(config, noise_scale_every=1)
    model = fresh(config)
    rollout = rollout_of(model, config)
    odd = rollout.rows(rollout.image_index % 2 == 1)._replace(group_sizes=torch.tensor([1, 2]))
    nothing = share_of_update(odd, 0, config)
    assert not nothing.prompts
    before = {name: tensor.clone() for name, tensor in model.weights.tensors("policy").items()}
    ((gradients, metrics),) = updates(model, nothing, config, State())
    assert not gradients
    assert metrics["train/grad_norm"] == 0
    assert distance(model.weights.tensors("policy"), before) == 0
    metrics = improve(model, make_optimizer(model, config), odd, State(), config)
    assert metrics["train/grad_norm"] > 0
    assert distance(model.weights.tensors("policy"), before) > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_empty_prompt_replaces_the_expected_share_of_prompts(fresh, tiny_folder, tmp_path, share):
    config = small(tiny_folder, tmp_path, num_groups=2, group_size=300, text_dropout=share, algorithm=AWM())
    model = fresh(config)
    rollout = rollout_of(model, replace(config, group_size=3))
    rollout = rollout.rows(torch.arange(6).repeat(100))._replace(image_index=torch.arange(600))
    trained = to_train(rollout, CondCache(model), config)
    empty = model.encode([""])
    dropped = (trained.cond.tensors["prompt_embeds"] == empty.tensors["prompt_embeds"]).flatten(1).all(1)
    assert torch.equal(dropped, (trained.cond.tensors["pooled"] == empty.tensors["pooled"]).all(1))
    assert torch.equal(trained.cond.tensors["prompt_embeds"][~dropped], rollout.cond.tensors["prompt_embeds"][~dropped])
    assert dropped.double().mean().item() == pytest.approx(share, abs=0.06)  # three deviations
    part = torch.tensor([7, 400, 31, 599])
    alone = to_train(rollout.rows(part), CondCache(model), config)
    assert torch.equal(alone.cond.tensors["pooled"], trained.cond.tensors["pooled"][part]), (
        "it depends on the image, not on its company"
    )
    again = to_train(rollout._replace(iteration=1), CondCache(model), config)
    assert torch.equal(again.cond.tensors["pooled"], trained.cond.tensors["pooled"]) == (share == 1)


@pytest.mark.parametrize("algorithm", [DGPO(t_sampling="uniform"), DiffusionDPO()])
def test_a_loss_that_compares_images_gives_a_whole_group_the_empty_prompt(fresh, tiny_folder, tmp_path, algorithm):
    """log Z of a prompt cancels only between images of that prompt."""
    config = small(tiny_folder, tmp_path, num_groups=40, group_size=3, text_dropout=0.4, algorithm=algorithm)
    model = fresh(config)
    rollout = rollout_of(model, replace(config, num_groups=2))
    rollout = rollout.rows(torch.arange(6).repeat(20))._replace(
        num_groups=40, image_index=torch.arange(120), group_index=torch.arange(120) // 3
    )
    pooled = to_train(rollout, CondCache(model), config).cond.tensors["pooled"]
    dropped = (pooled == model.encode([""]).tensors["pooled"]).all(1).view(40, -1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert 6 <= int(dropped.all(1).sum()) <= 26, "16 of 40 expected, three deviations of 3.1"


def test_without_text_dropout_prompts_stay(fresh, tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path)
    model = fresh(config)
    rollout = rollout_of(model, config)
    assert torch.equal(
        to_train(rollout, CondCache(model), config).cond.tensors["pooled"], rollout.cond.tensors["pooled"]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"redraw_groups": 1}, "redraw_groups=1 draws new prompts for dropped groups, and drop_equal_groups is off"),
        ({"redraw_groups": -1}, "redraw_groups=-1 cannot work: it must be at least 0"),
        ({"train_images": 3}, "train_images=3 must be an even number of at least 2"),
        ({"train_images": 0}, "train_images=0 must be an even number"),
        ({"split_updates": True}, "split_updates gives an update part of each group, and DGPO needs whole groups"),
        ({"split_updates": True, "algorithm": DiffusionDPO()}, "DiffusionDPO needs whole groups"),
        ({"text_dropout": 0.1, "algorithm": FlowGRPO()}, "text_dropout=0.1: FlowGRPO trains on the densities"),
        ({"text_dropout": 1.5}, r"text_dropout=1.5 is a share; it must be in \[0, 1\]"),
        ({"text_dropout": -0.5}, r"text_dropout=-0.5 is a share"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**fields)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pictures and scores are on another device only there")
def test_images_are_chosen_on_a_gpu_too(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", iterations=1, device="cuda", group_size=4, text_dropout=0.5)
    run(replace(config, train_images=2, drop_equal_groups=True, redraw_groups=1))
    assert rows(tmp_path / "run")[0]["train/frac_trained"] == 0.5


def test_choices_that_fit_are_accepted() -> None:
    Config(drop_equal_groups=True, redraw_groups=2, train_images=16, text_dropout=1.0)
    Config(split_updates=True, algorithm=DiffusionNFT(), train_images=2)
    Config(split_updates=True, algorithm=FlowGRPO())
    Config(train_images=18)
    Config(train_images=4, algorithm=DiffusionDPO())


@pytest.mark.slow
def test_a_failure_after_an_iteration_without_a_step_loses_nothing(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", algorithm=FREE_OF_KL, drop_equal_groups=True, checkpoint_every=10)
    calls = []

    def flat_then_away(images, prompts, metadata):
        calls.append(prompts)
        if len(calls) == 2:
            raise ConnectionError("the judge is away")
        return torch.zeros(len(images)) if len(calls) == 1 else colour(images, prompts, metadata)

    with pytest.raises(RewardError, match="the judge is away"):
        run(config, reward_functions={"colour": flat_then_away})
    assert newest(tmp_path / "run") == 1
    assert run(config, resume=True, reward_functions={"colour": flat_then_away}).iterations == 3
