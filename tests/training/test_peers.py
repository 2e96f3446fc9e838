"""The other algorithms through the real loop, on a tiny pipeline: first step, micro-batches, resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from runs import assert_same_run, distance, rows, run, small, tensors
from updates import in_float64, rollout_of, updates

from dgpo import DGPO, Sampling
from dgpo.algorithms import AWM, CRD, RAM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.algorithms.registry import BUILT_IN, algorithm_class
from dgpo.models.text_cache import CondCache
from dgpo.training.optim import make_optimizer
from dgpo.training.state import State
from dgpo.training.update import improve, to_train

pytestmark = pytest.mark.slow

TINY = {
    "dgpo": DGPO(beta=3.0, num_points=2, trunc_steps=2),
    "flow_grpo": FlowGRPO(),
    "diffusion_nft": DiffusionNFT(num_points=2, trunc_steps=2, old_decay_rate=0.2),
    "awm": AWM(num_points=2),
    "diffusion_dpo": DiffusionDPO(beta=30.0, num_points=2),
    "ram": RAM(num_points=2),
    "crd": CRD(num_points=2, trunc_steps=2),
}


def test_every_algorithm_is_here():
    assert {name: type(algorithm) for name, algorithm in TINY.items()} == {
        name: algorithm_class(name) for name in BUILT_IN
    }


@pytest.mark.parametrize("algorithm", TINY.values(), ids=TINY)
def test_a_stopped_run_resumes_bit_for_bit(tiny_folder, tmp_path, algorithm):
    """Two iterations of two updates; a new process would find nothing but the checkpoint."""
    whole = small(tiny_folder, tmp_path / "whole", iterations=2, updates_per_rollout=2, algorithm=algorithm)
    parts = replace(whole, out=str(tmp_path / "parts"))
    run(whole)
    run(replace(parts, iterations=1))
    run(parts, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 2)
    before, after = (
        {key: tensor for key, tensor in tensors(tmp_path / "parts", i).items() if key.startswith("policy.")}
        for i in (1, 2)
    )
    assert distance(after, before) > 0
    assert all(row["train/grad_norm"] > 0 for row in rows(tmp_path / "parts"))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_flow_grpo_begins_at_the_very_density_that_it_sampled_from(fresh, tiny_folder, tmp_path, guidance):
    """Bit for bit where the training batch is the sampling batch; the second step has left it."""
    config = small(
        tiny_folder,
        tmp_path,
        algorithm=FlowGRPO(),
        sampling=Sampling(num_inference_steps=4, guidance_scale=guidance, batch_size=6),
    )
    model = fresh(config, apart=True)
    rollout = rollout_of(model, config)
    first, second = (metrics for _, metrics in updates(model, rollout, config, State(), count=2))
    assert first["train/approx_kl"] == 0
    assert first["train/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["train/kl"] > 0
    assert second["train/approx_kl"] > 0


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_flow_grpo_begins_near_it_where_the_batches_differ(fresh, tiny_folder, tmp_path, guidance):
    config = small(
        tiny_folder,
        tmp_path,
        algorithm=FlowGRPO(),
        sampling=Sampling(num_inference_steps=4, guidance_scale=guidance, batch_size=6),
        micro_batch_size=1,
    )
    model = fresh(config, apart=True)
    rollout = rollout_of(model, config)
    ((_, metrics),) = updates(model, rollout, config, State())
    furthest = (2 * metrics["train/approx_kl"] * 6 * 3) ** 0.5  # the mean of (ratio - 1)^2 / 2 over images and steps
    assert furthest < 5e-6  # of a clip of 1e-4


def test_flow_grpo_trains_with_the_rollouts_guidance(fresh, tiny_folder, tmp_path):
    config = small(
        tiny_folder, tmp_path, algorithm=FlowGRPO(), sampling=Sampling(num_inference_steps=3, guidance_scale=2)
    )
    model = fresh(config)
    rollout = rollout_of(model, config)
    for guided, scale in ((True, 2.0), (False, 1.0)):
        model.images = Counter()
        own = replace(config, algorithm=FlowGRPO(guided=guided))
        updates(model, rollout, own, State())
        assert dict(model.images) == {("policy", scale, True): 12, ("ref", scale, False): 12}


@pytest.mark.parametrize("name", ["flow_grpo", "diffusion_nft", "awm", "diffusion_dpo", "ram", "crd"])
def test_the_update_does_not_depend_on_the_micro_batch(fresh, tiny_folder, tmp_path, name):
    """One image, two, whole groups: with DPO's pairs among them cut in two."""
    config = small(tiny_folder, tmp_path, algorithm=TINY[name], finetune="full")
    rollout = to_train(rollout_of(fresh(config), config), CondCache(fresh(config)), config)
    rollout = rollout._replace(x0=rollout.x0.double(), advantages=rollout.advantages.double())

    def updated(size):
        model = in_float64(fresh(config, apart=True))
        given = replace(config, micro_batch_size=size)
        ((gradients, _),) = updates(model, rollout, given, State(step=5))
        return gradients

    whole = updated(None)
    assert sum(float(gradient.square().sum()) for gradient in whole.values()) > 1e-8
    for size in (1, 2, 4):
        assert distance(updated(size), whole) < 1e-8, f"micro_batch_size={size}"


def test_old_waits_for_the_end_of_the_rollout_if_the_algorithm_says_so(fresh, tiny_folder, tmp_path):
    """AWM's ratio in the second update is measured from the policy that drew the rollout, not from the first's."""
    algorithm = AWM(num_points=1)
    config = small(tiny_folder, tmp_path, algorithm=algorithm, updates_per_rollout=2)
    model, state = fresh(config), State()
    metrics = improve(model, make_optimizer(model, config), rollout_of(model, config), state, config)
    assert state.step == 2
    assert metrics["train/ratio"] != 1
    assert model.weights.old_is_policy, "its decay is 0: the next rollout's `old` is the policy that draws it"
