"""A rollout depends on (seed, iteration, group, member) and the prompt, on nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import PROMPTS, colour, small
from updates import source_of

from dgpo import distributed, load_model, load_prompts
from dgpo.models.text_cache import CondCache
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.training.draw import chunks


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder, device="cpu", sets=("ref", "old", "ema"))


@pytest.fixture
def draw(model, tiny_folder, tmp_path):
    """A rollout of the first prompts, one pass of the network per image unless told."""

    def collected(batch_size=1, iteration=4, prompts=PROMPTS[:2], model=model, reward=colour, **changes):
        given = load_prompts(prompts)
        config = small(tiny_folder, tmp_path, **{"num_groups": len(given), **changes})
        config = replace(config, sampling=replace(config.sampling, batch_size=batch_size))
        rewards = RewardSet({"colour": 1.0}, {"colour": reward})
        return source_of(model, config, rewards, given).next(iteration)

    return collected


def test_what_a_rollout_holds(draw):
    seen = []

    def watch(images, prompts, metadata):
        seen.append((images, prompts, metadata))
        return colour(images, prompts, metadata)

    rollout = draw(batch_size=4, reward=watch, prompts=[("a cup", {"tag": "one"}), ("two dogs", {"tag": "two"})])
    assert [len(images) for images, _, _ in seen] == [4, 2], "as they are sampled"
    images, (prompts, metadata) = torch.cat([call[0] for call in seen]), (seen[0][i] + seen[1][i] for i in (1, 2))
    assert images.shape == (6, 3, 64, 64)
    assert 0 <= images.min() < images.max() <= 1
    assert prompts == ["a cup"] * 3 + ["two dogs"] * 3
    assert [row["tag"] for row in metadata] == ["one"] * 3 + ["two"] * 3
    assert rollout.x0.shape == (6, 4, 8, 8)
    assert rollout.group_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert rollout.image_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert rollout.group_sizes.tolist() == [3, 3]
    assert rollout.rewards.tolist() == colour(images, prompts, metadata).tolist() == rollout.scores["colour"].tolist()
    assert rollout.advantages.view(2, 3).sum(1).abs().max() < 1e-5
    assert rollout.rewards.std() > 0.01, "the tests below need images that differ"


@pytest.mark.slow
def test_the_sampling_batch_changes_rounding_only(draw):
    """Bit-equal for equal batches; otherwise the network's sums are rounded in another order."""
    alone = draw(batch_size=1)
    assert torch.equal(draw(batch_size=1).x0, alone.x0)
    for batch_size in (2, 4, 64):
        torch.testing.assert_close(draw(batch_size=batch_size).x0, alone.x0, rtol=1e-5, atol=1e-5)
    assert (alone.x0[0] - alone.x0[1]).abs().max() > 0.1


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_company(draw):
    few = draw(group_size=3).x0.view(2, 3, -1)
    many = draw(group_size=5, prompts=PROMPTS[:3]).x0.view(3, 5, -1)
    assert torch.equal(many[:2, :3], few)


@pytest.mark.parametrize("other", [{"seed": 1}, {"iteration": 5}])
def test_seed_and_iteration_draw_other_images(draw, other):
    one, another = draw(), draw(**other)
    assert (one.x0 - another.x0).flatten(1).abs().amax(1).min() > 0.1


@pytest.mark.slow
def test_after_the_switch_old_samples(draw, tiny_folder):
    model = load_model(tiny_folder, device="cpu", sets=("ref", "old", "ema"))
    before = draw(model=model, iteration=2).x0
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(0.05)
    assert not torch.equal(draw(model=model, iteration=2).x0, before), "the policy samples before the switch"
    after = draw(model=model, iteration=3).x0
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(0.05)
    assert torch.equal(draw(model=model, iteration=3).x0, after)


def test_conditioning_depends_on_the_prompt_alone_and_is_computed_once(model):
    encoded: list[str] = []

    def encode(prompts):
        encoded.extend(prompts)
        return model.encode(prompts)

    spy: Any = SimpleNamespace(encode=encode)
    cache = CondCache(spy, size=2)
    both: Any = cache(["a cup", "two dogs", "a cup"])
    alone: Any = CondCache(model)(["a cup"])
    assert encoded == ["a cup", "two dogs"]
    assert torch.equal(both.tensors["prompt_embeds"][2:], alone.tensors["prompt_embeds"])
    assert torch.equal(both.tensors["pooled"][1:2], model.encode(["two dogs"]).tensors["pooled"])
    cache(["green"])
    cache(["a cup"])
    assert encoded == ["a cup", "two dogs", "green"], "the prompt used last is kept"
    cache(["two dogs"])
    assert encoded == ["a cup", "two dogs", "green", "two dogs"], "the others are forgotten"


def test_chunks_cover_every_row_once():
    for total, size in ((7, 3), (6, 3), (1, 64), (0, 2)):
        parts = [list(range(total))[rows] for rows in chunks(total, size)]
        assert [row for part in parts for row in part] == list(range(total))
        assert all(len(part) <= size for part in parts)


def test_work_that_fails_raises_its_own_error():
    assert distributed.together(lambda: 3) == 3

    def fail():
        raise RewardError("mend me")

    with pytest.raises(RewardError, match="mend me"):
        distributed.together(fail)


def test_rows_by_a_mask_reach_the_conditioning_as_numbers(draw):
    """A model's own conditioning is only promised slices and numbers of rows."""

    class Listed(list):
        def __getitem__(self, index):
            return Listed(list.__getitem__(self, i) for i in index.tolist())

    rollout = draw()
    listed = rollout._replace(cond=Listed(rollout.prompts))
    mask = rollout.group_index == 1
    assert listed.rows(mask).cond == rollout.rows(mask).prompts
