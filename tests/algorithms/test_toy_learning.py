"""Each algorithm teaches the toy its prompts in seconds, and nothing where rewards do not belong to their images."""

import pytest
import torch
import toy

from dgpo.algorithms import AWM, CRD, DGPO, RAM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.algorithms.registry import BUILT_IN

# A mean over two numbers moves far more than one over an image's thousands, hence a smaller beta than the paper's.
MODES = {
    "frozen reference": DGPO(beta=1.0, kl_coef=0.01),
    "dynamic reference": DGPO(beta=1.0, kl_coef=0.01, reference="old"),
    "no clip, own noise and t": DGPO(
        beta=1.0, kl_coef=0.01, clip_range=None, shared_noise=False, shared_t=False, t_sampling="stratified"
    ),
    "sampled by old": DGPO(beta=1.0, kl_coef=0.01, sampling_switch=10, std="group"),
}
PEERS = {  # the algorithm and its optimizer steps on one rollout
    "flow_grpo": (FlowGRPO(clip_range=0.2, kl_coef=0.2, window=3, window_end=5), 2),
    "diffusion_nft": (DiffusionNFT(old_decay_rate=0.01), 1),
    "awm": (AWM(), 1),
    "diffusion_dpo": (DiffusionDPO(beta=2.0), 1),
    "ram": (RAM(), 1),
    "crd": (CRD(), 1),
}
SLIDING = FlowGRPO(clip_range=0.2, kl_coef=0.2, window=4, window_shift_every=2, constant_noise=True)
CPS = FlowGRPO(clip_range=0.2, kl_coef=0.2, window=3, window_end=5, sde_type="cps", noise_level=0.8)
BASE = 0.2


def train(algorithm, **options):
    return toy.train(algorithm, iterations=50, learning_rate=0.01, **options)


def test_every_built_in_algorithm_has_to_learn_here():
    assert {"dgpo", *PEERS} == {*BUILT_IN}


def test_the_base_ignores_its_prompt():
    model = toy.ToyModel()
    assert toy.score(model) == toy.score(model, "ref") == pytest.approx(BASE, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", MODES.values(), ids=MODES)
def test_reward_rises(algorithm):
    model, history = train(algorithm)
    assert toy.score(model) > 2 * BASE
    assert toy.score(model, "old") > 2 * BASE
    assert all(metric == metric for metric in history[-1].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "updates"),
    [*PEERS.values(), (SLIDING, 2), (CPS, 2)],
    ids=[*PEERS, "sliding window", "coefficients preserved"],
)
def test_reward_rises_with_other_algorithms(algorithm, updates):
    model, history = train(algorithm, updates=updates)
    assert toy.score(model) > 2 * BASE
    assert toy.score(model, "old") > 2 * BASE
    assert all(metric == metric for metric in history[-1].values())


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "updates"), PEERS.values(), ids=PEERS)
def test_rewards_of_other_images_teach_other_algorithms_nothing(algorithm, updates):
    model, _ = train(algorithm, updates=updates, shuffle=True)
    assert toy.score(model) < 1.25 * BASE


def test_old_stays_while_a_rollout_is_trained_on_if_the_algorithm_says_so():
    """In the second update of a rollout AWM's ratio is measured from the policy that drew it."""
    _, (both,) = toy.train(AWM(kl_coef=0.0), 1, updates=2)
    _, (first,) = toy.train(AWM(kl_coef=0.0), 1, updates=1)
    assert first["ratio"] == 1
    assert both["ratio"] != 1


def test_only_pairs_train_with_diffusion_dpo():
    rollout = toy.collect(toy.ToyModel(), DiffusionDPO(), 0, seed=0, num_groups=3, group_size=5, shuffle=False)
    part = rollout.rows(rollout.trained)
    assert part.group_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.group_sizes.tolist() == [2, 2, 2]
    assert part.advantages.reshape(3, 2).sum(1).tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rewards_of_other_images_teach_nothing(seed):
    model, _ = train(MODES["frozen reference"], seed=seed, shuffle=True)
    assert toy.score(model) < 1.25 * BASE


def test_a_stochastic_algorithm_gets_its_trajectory():
    rollout = toy.collect(toy.ToyModel(), FlowGRPO(), 0, seed=0, num_groups=2, group_size=3, shuffle=False)
    assert rollout.trajectory is not None
    assert rollout.trajectory.latents.shape == (6, 11, 2)
    assert rollout.trajectory.log_probs.shape == (6, 10)
    assert torch.equal(rollout.trajectory.latents[:, -1], rollout.x0)


def test_a_run_is_repeated_exactly():
    runs = [toy.train(MODES["sampled by old"], iterations=3, seed=5)[0].networks["policy"] for _ in range(2)]
    for first, second in zip(runs[0].parameters(), runs[1].parameters()):
        assert torch.equal(first, second)
