"""The loop: what it evaluates, that its update does not depend on how the batch is cut up, and what stops it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import train_worker
from runs import MODES, REWARDS, ROUNDING, assert_same_run, colour, distance, newest, rows, run, small, tensors
from updates import in_float64, rollout_of, updates

import dgpo
from dgpo import DGPO, FlowGRPO, Sampling, UserError, load_model
from dgpo.config import Optimizer, load_yaml
from dgpo.core import seeds
from dgpo.errors import NonFiniteError
from dgpo.report.grids import read_samples
from dgpo.rewards.base import RewardError
from dgpo.run import checkpoint
from dgpo.training import saving
from dgpo.training.metrics import note_evaluation
from dgpo.training.optim import learning_rate
from dgpo.training.schedule import measures_noise, micro_batch, weight_sets
from dgpo.training.state import State
from dgpo.training.update import micro_batches
from dgpo.types import TrainPoint, Velocities

pytestmark = pytest.mark.slow

# --- the update


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_the_update_does_not_depend_on_the_micro_batch(fresh, tiny_folder, tmp_path, finetune, mode):
    """Parts of groups, whole groups, everything: two updates agree to float64's rounding."""
    config = small(tiny_folder, tmp_path, mode, finetune=finetune, num_groups=3, noise_scale_every=2)
    rollout = rollout_of(fresh(config), config)
    rollout = rollout._replace(x0=rollout.x0.double(), advantages=rollout.advantages.double())

    def updated(micro_batch_size):
        model, state = in_float64(fresh(config, apart=True)), State(step=1)
        found = updates(model, rollout, replace(config, micro_batch_size=micro_batch_size), state, count=2)
        return found, dict(model.weights.tensors("policy"))

    whole, weights = updated(None)
    assert any(0 < metrics["train/clip_fraction"] < 1 for _, metrics in whole), "the clip acts on some images"
    assert all(metrics["train/kl"] > 1e-4 for _, metrics in whole)
    for size in (2, 3):
        found, moved = updated(size)
        for (gradients, metrics), (expected, expected_metrics) in zip(found, whole):
            assert distance(gradients, expected) < 1e-10, f"micro_batch_size={size}"
            for name in expected_metrics.keys() - {"train/grad_noise_scale", "train/grad_signal", "forwards"}:
                assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-5, abs=1e-8), name
        assert distance(moved, weights) < 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_the_update_is_the_gradient_of_the_mean_loss(fresh, tiny_folder, tmp_path, mode):
    """By hand: the velocities of policy, ref and old for all images, the algorithm's loss, its mean over the points."""
    config = small(tiny_folder, tmp_path, mode, finetune="full")
    algorithm, model = config.algorithm, fresh(config, apart=True)
    rollout = rollout_of(model, config)
    losses = []
    for x_t, t, target, *_ in algorithm.points(rollout, seeds.generator(0, "points", 0)):
        v = model.velocity(x_t, t, rollout.cond)
        with torch.no_grad():
            ref = model.velocity(x_t, t, rollout.cond, algorithm.ref_guidance_scale, "ref")
            old = model.velocity(x_t, t, rollout.cond, weights="old")
        losses.append(algorithm.loss(TrainPoint(x_t, t, target), Velocities(v, ref, old), rollout)[0])
    parameters = dict(model.weights.named_parameters())
    loss = torch.stack(losses).mean()
    expected = torch.autograd.grad(loss, list(parameters.values()))
    ((gradients, metrics),) = updates(model, rollout, config, State(step=1))
    assert distance(gradients, dict(zip(parameters, expected))) < ROUNDING
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["train/clip_fraction"] > 0, "without a clip `old` would not matter"


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_in_fp32_the_micro_batch_changes_rounding_only(fresh, tiny_folder, tmp_path, finetune):
    """Weights to 1e-6; gradients to 3e-6, for they are differences between the gradients of a group's images."""
    config = small(tiny_folder, tmp_path, finetune=finetune, num_groups=3)
    rollout = rollout_of(fresh(config), config)

    def updated(micro_batch_size):
        model = fresh(config, apart=True)
        given = replace(config, micro_batch_size=micro_batch_size)
        ((gradients, _),) = updates(model, rollout, given, State(step=1))
        return gradients, dict(model.weights.tensors("policy"))

    gradients, weights = updated(None)
    for size in (2, 3):
        other_gradients, other_weights = updated(size)
        assert distance(other_gradients, gradients) < ROUNDING
        assert distance(other_weights, weights) < ROUNDING


@pytest.mark.slow
def test_a_split_group_needs_its_statistics(fresh, tiny_folder, tmp_path, monkeypatch):
    """The test above can fail: without the statistics pass the gradient is another one."""
    config = small(tiny_folder, tmp_path)
    rollout, state = rollout_of(fresh(config), config), State()
    ((whole, _),) = updates(fresh(config, apart=True), rollout, config, state)
    monkeypatch.setattr("dgpo.training.update.splits_group", lambda *_: False)
    state = State()
    ((wrong, _),) = updates(fresh(config, apart=True), rollout, replace(config, micro_batch_size=1), state)
    assert distance(wrong, whole) > 1e-3


@pytest.mark.slow
def test_measuring_the_noise_changes_rounding_only(fresh, tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path, num_groups=3)
    rollout = rollout_of(fresh(config), config)
    ((plain, metrics),) = updates(fresh(config, apart=True), rollout, config, State())
    measuring = replace(config, noise_scale_every=1)
    ((measured, more),) = updates(fresh(config, apart=True), rollout, measuring, State())
    assert distance(measured, plain) < ROUNDING
    assert more.keys() - metrics.keys() == {"train/grad_noise_scale", "train/grad_signal"}


@pytest.mark.slow
def test_noise_is_that_of_whole_groups(fresh, tiny_folder, tmp_path):
    """Signal and noise of three groups by hand, from each group's own gradient."""
    config = small(tiny_folder, tmp_path, num_groups=3, noise_scale_every=1)
    rollout, state = rollout_of(fresh(config), config), State()
    ((whole, _),) = updates(fresh(config, apart=True), rollout, config, state)
    own = []
    for group in range(3):
        alone = rollout.rows(slice(3 * group, 3 * group + 3))
        ((gradient, _),) = updates(fresh(config, apart=True), alone, replace(config, noise_scale_every=0), State())
        own.append(sum(float((3 * g).double().square().sum()) for g in gradient.values()))
    mean = sum(float(g.double().square().sum()) for g in whole.values())
    noise = (sum(own) / 3 - mean) / (1 - 1 / 3)
    assert state.noise.noise == pytest.approx(noise, rel=1e-4)
    assert state.noise.signal == pytest.approx(mean - noise / 3, rel=1e-3, abs=1e-4 * mean)


def test_when_noise_is_measured(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path, noise_scale_every=3)
    assert [measures_noise(config, step, 1) for step in range(4)] == [True, False, False, True]
    assert not measures_noise(replace(config, num_groups=1), 0, 1)
    assert not measures_noise(replace(config, micro_batch_size=2), 0, 1), "a split group has no gradient of its own"
    assert not measures_noise(replace(config, noise_scale_every=0), 0, 1)
    stochastic = replace(config, algorithm=FlowGRPO(), dtype="fp32")
    assert measures_noise(stochastic, 0, 1)
    assert not measures_noise(replace(stochastic, dtype="bf16"), 0, 1), "its density changes with the batch"
    assert measures_noise(replace(config, dtype="bf16"), 0, 1)


@pytest.mark.parametrize(
    ("size", "by_group", "expected"),
    [
        (None, False, [7]),
        (7, False, [7]),
        (5, False, [3, 3, 1]),
        (3, False, [3, 3, 1]),
        (2, False, [2, 2, 2, 1]),
        (99, False, [7]),
        (None, True, [3, 3, 1]),
        (6, True, [3, 3, 1]),
    ],
)
def test_micro_batches_hold_whole_groups_where_they_fit(tiny_folder, tmp_path, size, by_group, expected):
    config = small(tiny_folder, tmp_path, micro_batch_size=size)
    rollout: Any = SimpleNamespace(prompts=["a"] * 7, group_sizes=torch.tensor([3, 3, 1]))
    parts = micro_batches(rollout, config, by_group)
    assert [part.stop - part.start for part in parts] == expected
    assert [part.start for part in parts] == [sum(expected[:i]) for i in range(len(expected))]


def test_only_a_loss_that_couples_a_group_has_its_micro_batches_cut_to_whole_groups(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path, micro_batch_size=8)
    assert micro_batch(config, 12, 3) == 6
    assert micro_batch(replace(config, algorithm=FlowGRPO()), 12, 3) == 8
    assert micro_batch(replace(config, algorithm=FlowGRPO()), 12, 3, by_group=True) == 3


@pytest.mark.slow
def test_two_ranks_equal_one_process(tiny_folder, tmp_path):
    """Rollouts bit for bit; weights and metrics of two iterations to rounding; one rank's failure stops both."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", train_worker.__file__]
    (tmp_path / "ranks").mkdir()
    (tmp_path / "alone").mkdir()
    command = [sys.executable, *launch, str(tiny_folder), str(tmp_path / "ranks")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]

    drawn, alone = torch.load(tmp_path / "ranks" / "rollout.pt"), train_worker.rollout_of(tiny_folder)
    assert all(torch.equal(drawn[name], alone[name]) for name in alone)
    drawn, alone = torch.load(tmp_path / "ranks" / "composed.pt"), train_worker.composed(tiny_folder)
    assert drawn["metrics"] == alone["metrics"]
    assert 0 < alone["metrics"]["train/reward_dropped/red"] < 15
    assert alone["apart"].isnan().tolist() == [True] * 5 + [False] * 10
    for name in alone.keys() - {"metrics"}:
        assert torch.equal(drawn[name].nan_to_num(99), alone[name].nan_to_num(99)), name
    functions = {"redrawn": {"reward_functions": {"colour": train_worker.equal_for_a_cup}}}
    for name in ("straddling", "aligned", "offline", "redrawn"):
        one, two = tmp_path / "alone" / name, tmp_path / "ranks" / name
        run(getattr(train_worker, name)(tiny_folder, one), **functions.get(name, {}))
        for left, right in zip(rows(two), rows(one), strict=True):
            if name != "aligned":  # groups that are cut take a pass for their totals
                assert left.pop("train/forwards") >= right.pop("train/forwards")
            if name == "redrawn":  # one process has whole groups and measures the noise scale
                assert right.pop("train/grad_noise_scale") != left.get("train/grad_noise_scale", "absent")
                right.pop("train/grad_signal")
            finite = [{k: math.inf if v is None else v for k, v in row.items()} for row in (left, right)]
            assert finite[0] == pytest.approx(finite[1], rel=1e-3, abs=1e-5)
        together, single = tensors(two, 2), tensors(one, 2)
        for part in ("policy.", "old.", "ema."):
            picked = [{k: v for k, v in found.items() if k.startswith(part)} for found in (together, single)]
            assert distance(*picked) < ROUNDING
    assert "train/grad_noise_scale" in rows(tmp_path / "ranks" / "aligned")[0]
    assert "eval/many/drift/change_low" in rows(tmp_path / "ranks" / "straddling")[-1]
    drawn, alone = (read_samples(tmp_path / place / "straddling") for place in ("ranks", "alone"))
    assert drawn
    assert alone
    assert drawn.prompts == alone.prompts == [f"{number} cups" for number in range(7) for _ in range(2)]
    assert drawn.scores[0]["colour"] == pytest.approx(alone.scores[0]["colour"], rel=1e-3, abs=1e-5)
    messages = [json.loads((tmp_path / "ranks" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert all("raised ConnectionError: the judge is away" in message for message in messages)
    assert newest(tmp_path / "ranks" / "failing") == 0


# --- what is evaluated


@pytest.mark.slow
def test_nothing_is_evaluated_that_is_not_needed(fresh, tiny_folder, tmp_path):
    """Images through the network in one update of 6 images at 2 points, by weight set."""
    base = small(tiny_folder, tmp_path)
    rollout = rollout_of(fresh(base), base)

    def counted(state, **changes):
        given = {name: changes.pop(name) for name in ("micro_batch_size",) if name in changes}
        config = replace(base, algorithm=replace(base.algorithm, **changes), **given)
        model = fresh(config)
        if state.step:
            model.weights.stepped()
        updates(model, rollout, config, state)
        return dict(model.images)

    trained, statistics = {("policy", 1.0, True): 12}, {("policy", 1.0, False): 12}
    ref, old = {("ref", 1.0, False): 12}, {("old", 1.0, False): 12}
    guided = {("ref", 3.0, False): 12}
    is_policy = lambda: State()
    moved = lambda: State(step=5)
    assert counted(is_policy()) == trained | ref, "old is the policy: its forward is the policy's own"
    assert counted(moved()) == trained | ref | old
    assert counted(moved(), ref_guidance_scale=3.0) == trained | guided | old
    assert counted(moved(), clip_range=None) == trained | ref
    assert counted(moved(), kl_coef=0.0, reference="old") == trained | old
    assert counted(is_policy(), kl_coef=0.0, reference="old") == trained
    assert counted(moved(), kl_coef=0.0, reference="old", clip_range=None) == trained | old
    assert counted(moved(), micro_batch_size=3) == trained | ref | old, "whole groups need no statistics pass"
    assert counted(moved(), micro_batch_size=2) == trained | ref | old | statistics
    assert counted(is_policy(), micro_batch_size=2) == trained | ref | statistics, "it serves as old's, too"


def test_old_equals_the_policy_as_long_as_its_decay_is_zero(fresh, tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path)
    model, state = fresh(config), State()
    rollout = rollout_of(model, config)
    updates(model, rollout, config, state, count=1)
    assert model.weights.old_is_policy
    assert distance(model.weights.tensors("old"), model.weights.tensors("policy")) == 0
    updates(model, rollout, config, state, count=1)
    assert not model.weights.old_is_policy
    assert distance(model.weights.tensors("old"), model.weights.tensors("policy")) > 0


# --- a whole run


def test_ten_lines_of_python(tiny_folder, tmp_path, monkeypatch):
    class Greenness:
        def __init__(self):
            self.seen = set()

        def __call__(self, images, prompts, metadata):
            self.seen |= set(prompts)
            return images[:, 1].mean((1, 2)).tolist()

    reward = Greenness()
    result = dgpo.train(
        dgpo.Config(
            model=str(tiny_folder),
            out=str(tmp_path / "run"),
            prompts=("a cat", "a dog", "a cup"),
            rewards={"greenness": 1.0},
            iterations=2,
            num_groups=3,
            group_size=2,
            eval_every=0,
            sampling=Sampling(num_inference_steps=2),
            algorithm=DGPO(trunc_steps=1, num_points=1),
        ),
        reward_functions={"greenness": reward},
    )
    assert reward.seen == {"a cat", "a dog", "a cup"}
    assert result == (tmp_path / "run", 2, {}, False, False)
    assert [row["iteration"] for row in rows(result.run)] == [1, 2]
    assert (result.run / "final" / "pytorch_lora_weights.safetensors").is_file()


def test_what_a_run_leaves(tiny_folder, tmp_path):
    (tmp_path / "eval.txt").write_text("a cup\ntwo dogs\n")
    config = small(
        tiny_folder, tmp_path / "run", iterations=4, eval_every=2, eval_prompts={"seen": str(tmp_path / "eval.txt")},
        eval_images_per_prompt=1, num_samples=1, checkpoint_every=3, keep_checkpoints=1, noise_scale_every=2,
        updates_per_rollout=2,
    )  # fmt: skip
    result = run(config)
    logged = rows(result.run)
    assert [row["iteration"] for row in logged] == [0, 1, 2, 2, 3, 4, 4]
    evaluations = {row["iteration"]: row for row in logged if "eval/seen/reward" in row}
    assert sorted(evaluations) == [0, 2, 4], "at the start, every second iteration, at the end"
    beside = {key: evaluations[4][key] for key in ("iteration", "train/forwards")}
    assert {**result.metrics, **beside} == evaluations[4]
    assert [p.name for p in sorted((result.run / "samples").glob("*.png"))] == [
        f"iteration-00000{i}.png" for i in (0, 2, 4)
    ]
    names = ("reward_mean", "reward_std", "frac_reward_zero_std", "score/colour", "loss", "kl", "clip_fraction", "lr")
    trained = [row for row in logged if "train/loss" in row]
    assert all(f"train/{name}" in row for row in trained for name in names)
    assert [i for i, row in enumerate(trained, 1) if "train/grad_noise_scale" in row] == [1, 2, 3, 4]
    timed = json.loads((result.run / "metrics.jsonl").read_text().splitlines()[1])
    phases = sum(timed[f"time/{phase}"] for phase in ("rollout", "reward", "update"))
    assert 0 < phases <= timed["time/iteration"] <= timed["time/elapsed"]
    best = max(evaluations, key=lambda i: (evaluations[i]["eval/seen/reward"], -i))
    kept = [checkpoint.iteration_of(path) for path in checkpoint.list_checkpoints(result.run)]
    assert kept == sorted({best, 4}), "the newest and the best"
    _, state = checkpoint.load(result.run / "checkpoints" / "iteration-000004")
    assert (state["iteration"], state["step"], state["best_iteration"]) == (4, 8, best)


def test_the_best_weights_are_exported_beside_the_last(tiny_folder, tmp_path, capsys):
    """The evaluation after iteration 1 is the best of those after 0, 1, 2 and, resumed, 3, until the last of all."""
    (tmp_path / "eval.txt").write_text("a cup\n")
    sets = {"seen": str(tmp_path / "eval.txt")}
    config = small(tiny_folder, tmp_path / "run", iterations=2, eval_every=1, eval_prompts=sets, report=True)
    offsets = iter([0, 0, 9, 0, 5, 0, 7, 0, 99])  # of evaluations and rollouts in turn

    def scripted(images, prompts, metadata):
        return next(offsets) + colour(images, prompts, metadata)

    result, file = run(config, reward_functions={"colour": scripted}), "pytorch_lora_weights.safetensors"
    for folder, iteration in (("final", 2), ("best", 1)):
        exported = (result.run / folder / file).read_bytes()
        assert exported == (result.run / f"checkpoints/iteration-00000{iteration}/lora" / file).read_bytes()
        card = (result.run / folder / "README.md").read_text()
        assert f"average (`ema`) after {iteration} iteration" in card
        assert f"for {iteration} iteration" in card
    assert "The evaluation after iteration 1 was better" in (result.run / "final/README.md").read_text()
    assert "the run went on to iteration 2" in (result.run / "best/README.md").read_text()
    said, page = capsys.readouterr().out, (result.run / "report.html").read_text()
    assert f"The best evaluation was that after iteration 1: its weights are in {result.run}/best" in said
    assert "The best evaluation was that after iteration 1 (" in page
    assert "Its weights are in best/ of the run folder." in page
    assert "2 iterations in" in page

    run(replace(config, iterations=3), resume=True, reward_functions={"colour": scripted})
    assert (result.run / "best").is_dir()
    run(replace(config, iterations=4), resume=True, reward_functions={"colour": scripted})
    assert not (result.run / "best").exists(), "the last is the best"
    said = capsys.readouterr().out
    assert "goes on after iteration 3" in said
    run(replace(config, iterations=4), resume=True, reward_functions={"colour": scripted})
    assert "finished: all its 4 iterations are done" in capsys.readouterr().out


def test_a_best_export_that_fails_leaves_the_weights_as_they_were(fresh, tiny_folder, tmp_path, monkeypatch):
    model = fresh(small(tiny_folder, tmp_path))
    before = {name: tensor.clone() for name, tensor in model.weights.tensors("ema").items()}
    others = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    monkeypatch.setattr(checkpoint, "load", lambda path: ({"ema": others}, {}))
    monkeypatch.setattr(model.weights, "export", mock.Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        saving._export_best(tmp_path / "checkpoint", tmp_path / "best", model)
    after = model.weights.tensors("ema")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_evaluating_does_not_change_training(tiny_folder, tmp_path):
    (tmp_path / "eval.txt").write_text("a cup\ntwo dogs\ngreen\n")
    sets = {"seen": str(tmp_path / "eval.txt")}
    plain = small(tiny_folder, tmp_path / "plain", iterations=2)
    watched = replace(plain, out=str(tmp_path / "watched"), eval_every=1, eval_prompts=sets, eval_images_per_prompt=1)
    run(plain)
    run(watched)
    one, other = tensors(tmp_path / "plain", 2), tensors(tmp_path / "watched", 2)
    assert all(torch.equal(one[key], other[key]) for key in one)
    trained = [row for row in rows(tmp_path / "watched") if "train/loss" in row]
    assert trained == rows(tmp_path / "plain")


def test_the_first_of_the_best_evaluations_is_the_best():
    state = State()
    for iteration, reward in enumerate((0.2, 0.5, 0.5, 0.4)):
        state.iteration = iteration
        note_evaluation(state, {"eval/a/reward": reward, "eval/b/reward": 0.1, "eval/a/reward/tag": 9, "eval/a/x": 9})
        assert state.evaluated == iteration
    assert (state.best_iteration, state.best_score) == (1, pytest.approx(0.3))


def test_bf16_arithmetic_trains_fp32_weights(tiny_folder, tmp_path):
    run(small(tiny_folder, tmp_path / "run", iterations=2, dtype="bf16"))
    found = tensors(tmp_path / "run", 2)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in found.values())
    for row in rows(tmp_path / "run"):
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize(("switch", "kept"), [(3, True), (10**6, False)])
def test_old_is_kept_if_a_longer_run_would_sample_from_it(tiny_folder, tmp_path, switch, kept):
    algorithm = replace(MODES["cfg"][0], clip_range=None, sampling_switch=switch, trunc_steps=2, num_points=2)
    assert ("old" in weight_sets(small(tiny_folder, tmp_path, iterations=1, algorithm=algorithm))) == kept


# --- what stops a run


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_step(fresh, tiny_folder, tmp_path, spoiled):
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10, noise_scale_every=1)
    model = fresh(config, spoil=lambda call, v: v * spoiled if call == 4 + 3 else v)  # 4 micro-batches an iteration
    with pytest.raises(NonFiniteError) as error:
        run(config, model=model)
    for part in ("train/loss", "train/grad_norm", "iteration 2 (step 2)", "checkpoints/", "optimizer.lr", "kl_coef"):
        assert part in str(error.value)
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [1]
    assert newest(tmp_path / "run") == 1
    saved = {k.removeprefix("policy."): t for k, t in tensors(tmp_path / "run", 1).items() if k.startswith("policy.")}
    assert distance(model.weights.tensors("policy"), saved) == 0, "the weights are those before the step"
    assert not (tmp_path / "run" / "failed").exists()
    run(config, resume=True)
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 3)


@pytest.mark.slow
def test_a_failure_amid_an_iteration_is_kept_aside(fresh, tiny_folder, tmp_path):
    """After the first of two updates the weights belong to no iteration: they are kept, and not resumed from."""
    config = small(tiny_folder, tmp_path / "run", updates_per_rollout=2)
    for attempt in (1, 2):
        model = fresh(config, spoil=lambda call, v: v * math.nan if call == 8 - 4 * (attempt - 1) else v)  # noqa: B023
        with pytest.raises(NonFiniteError, match=r"iteration 2 \(step 4\)"):
            run(config, model=model, resume=attempt == 2)
        assert newest(tmp_path / "run") == 1
        _, state = checkpoint.load(tmp_path / "run" / "failed" / "checkpoints" / "iteration-000001")
        assert (state["iteration"], state["step"]) == (1, 3)
        policy = tensors(tmp_path / "run" / "failed", 1)
        assert all(torch.equal(policy[f"policy.{k}"], t) for k, t in model.weights.tensors("policy").items())
    run(config, resume=True)
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 3)


@pytest.fixture(scope="module")
def unhurt(tiny_folder, tmp_path_factory):
    """The run that no reward disturbed."""
    return run(small(tiny_folder, tmp_path_factory.mktemp("unhurt") / "run")).run


def fail(images, prompts, metadata):
    raise ConnectionError("the judge is away")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (fail, "raised ConnectionError: the judge is away"),
        (lambda images, *_: [0.0] * (len(images) - 1) + [math.nan], "returned nan"),
        (lambda images, *_: torch.full((len(images),), math.inf), "returned inf"),
        (lambda images, *_: images.mean((2, 3)), r"returned shape \(6, 3\)"),
    ],
)
def test_a_failing_reward_stops_and_counts_for_nothing(tiny_folder, tmp_path, unhurt, wrong, message):
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    calls = []

    def second(images, prompts, metadata):
        calls.append(prompts)
        return (colour if len(calls) < 2 else wrong)(images, prompts, metadata)

    with pytest.raises(RewardError, match=message):
        run(config, reward_functions={"colour": second})
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [1]
    assert newest(tmp_path / "run") == 1, "the finished iteration is not lost"
    (picture,) = (tmp_path / "run" / "failures").glob("*.png")
    assert json.loads(picture.with_suffix(".json").read_text())["prompt"] in calls[1]
    run(config, resume=True)
    assert_same_run(tmp_path / "run", unhurt, 3)


def test_a_run_goes_on_without_what_a_reward_dropped_and_resumes_bit_for_bit(tiny_folder, tmp_path):
    """In every iteration the reward is down at first, and has no score for the third image at the next two calls."""
    config = small(tiny_folder, tmp_path / "whole", iterations=2, reward_failures={"colour": "retry(2, 0)+drop"})
    calls = []

    def unsteady(images, prompts, metadata):
        calls.append(prompts)
        if len(calls) % 3 == 1:
            raise ConnectionError("the judge is away")
        return colour(images, prompts, metadata).index_fill(0, torch.tensor([2]), math.nan)

    parts = replace(config, out=str(tmp_path / "parts"))
    run(config, reward_functions={"colour": unsteady})
    run(replace(parts, iterations=1), reward_functions={"colour": unsteady})
    run(parts, reward_functions={"colour": unsteady}, resume=True)
    assert len(calls) == 4 * 3
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 2)
    for row in rows(tmp_path / "whole"):
        assert (row["train/reward_retries/colour"], row["train/reward_dropped/colour"]) == (2, 1)
        assert row["train/frac_trained"] == pytest.approx(5 / 6)
        assert row["train/grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [0, 1])
def test_a_reward_that_fails_in_an_evaluation_is_evaluated_again(tiny_folder, tmp_path, iteration):
    (tmp_path / "eval.txt").write_text("a cup\n")
    config = small(tiny_folder, tmp_path / "run", iterations=2, checkpoint_every=2, eval_every=1)
    config = replace(config, eval_prompts={"seen": str(tmp_path / "eval.txt")}, eval_images_per_prompt=1)
    evaluations = []

    def sometimes(images, prompts, metadata):
        evaluations.extend([1] * (len(prompts) == 1))
        return (fail if len(evaluations) == iteration + 1 and len(prompts) == 1 else colour)(images, prompts, metadata)

    with pytest.raises(RewardError, match="the judge is away"):
        run(config, reward_functions={"colour": sometimes})
    assert newest(tmp_path / "run") == iteration
    run(config, resume=True)
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 2)


# --- what is refused before anything is written


def test_a_run_that_cannot_work_writes_nothing(tiny_folder, tmp_path, monkeypatch):
    config = small(tiny_folder, tmp_path / "run")
    with pytest.raises(UserError, match=r"reward_functions gives 'color'.* Did you mean 'colour'"):
        run(config, reward_functions={"color": colour, **REWARDS})
    model = load_model(tiny_folder, device="cpu", sets=("ref", "ema"))
    with pytest.raises(UserError, match="the run uses the weight sets old, and the given model has only policy, ref"):
        run(config, model=model)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"run needs 0\.000 GB, and its disk has 0\.000 GB free"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_model_with_other_sets_than_the_checkpoint_is_refused(tiny_folder, tmp_path):
    algorithm = replace(MODES["cfg"][0], clip_range=None, sampling_switch=10**6, trunc_steps=2, num_points=2)
    config = small(tiny_folder, tmp_path / "run", iterations=1, algorithm=algorithm)
    run(config)
    other = load_model(tiny_folder, device="cpu", lora=config.lora)
    with pytest.raises(UserError, match="holds no weights old; resume with the model that the run began with"):
        run(replace(config, iterations=2), model=other, resume=True)


@pytest.mark.slow
def test_a_run_may_be_limited_in_time_and_go_on_later(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", iterations=4, max_minutes=1e-6)
    result = run(config)
    assert (result.iterations, result.interrupted) == (1, False)
    assert (result.run / "final").is_dir()
    assert run(replace(config, iterations=3, max_minutes=None), resume=True).iterations == 3
    alone = run(small(tiny_folder, tmp_path / "alone", iterations=3))
    assert_same_run(result.run, alone.run, 3)


def test_the_rate_rises_falls_along_a_cosine_and_stays():
    falling = Optimizer(lr=1.0, warmup_steps=4, decay_steps=10)
    rates = [learning_rate(step, falling) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.55)
    assert rates[14:] == pytest.approx([0.1] * 26)
    assert rates[4:15] == sorted(rates[4:15], reverse=True)
    constant = Optimizer(lr=0.5, warmup_steps=2)
    assert [learning_rate(step, constant) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


@pytest.fixture
def without_compiling(monkeypatch):
    """torchao compiles its step, which takes longer than the test."""
    monkeypatch.setattr("dgpo.training.optim.require_compiler", lambda *_: None)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def test_moments_in_8_bits_train_alike_and_resume_bit_for_bit(without_compiling, tiny_folder, tmp_path):
    changes = {"finetune": "full", "optimizer": Optimizer(lr=1e-3, name="adamw8bit", warmup_steps=2)}
    run(small(tiny_folder, tmp_path / "whole", **changes))
    run(small(tiny_folder, tmp_path / "parts", **changes, iterations=2))
    run(small(tiny_folder, tmp_path / "parts", **changes), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3)
    kept = tensors(tmp_path / "whole", 3)
    codes = [tensor for key, tensor in kept.items() if key.startswith("optimizer.exp_avg:codes.")]
    assert codes
    assert all(tensor.dtype == torch.uint8 for tensor in codes)
    run(small(tiny_folder, tmp_path / "fp32", **{**changes, "optimizer": Optimizer(lr=1e-3, warmup_steps=2)}))
    policies = [{k: v for k, v in t.items() if k[:7] == "policy."} for t in (kept, tensors(tmp_path / "fp32", 3))]
    pretrained = load_model(tiny_folder, finetune="full", device="cpu").weights.tensors("policy")
    start = {f"policy.{key}": value for key, value in pretrained.items()}
    moved = distance(policies[1], start)
    assert 0 < distance(policies[0], policies[1]) < 0.3 * moved


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_for_bit(tiny_folder, tmp_path, monkeypatch):
    """Traced as always; run without code generation, which takes minutes."""
    default = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: default(module, backend="eager", **how))
    changes = {"compile": True, "algorithm": DGPO(num_points=2, trunc_steps=2)}
    run(small(tiny_folder, tmp_path / "whole", **changes, iterations=2))
    run(small(tiny_folder, tmp_path / "parts", **changes, iterations=1))
    torch.compiler.reset()  # a new process has compiled nothing
    run(small(tiny_folder, tmp_path / "parts", **changes, iterations=2), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)


def test_8_bits_without_torchao_are_refused_before_anything_is_written(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"needs torchao .* pip install 'dgpo\[8bit\]'"):
        run(small(tiny_folder, tmp_path / "run", optimizer=Optimizer(name="adamw8bit")))
    assert not (tmp_path / "run").exists()


def test_8_bits_without_a_compiler_are_refused_before_anything_is_written(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"optimizer.name='adamw8bit' needs a compiler for cpu code.*or take adamw"):
        run(small(tiny_folder, tmp_path / "run", optimizer=Optimizer(name="adamw8bit")))
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_precision_that_auto_chose(tiny_folder, tmp_path, monkeypatch):
    """A resume on a machine whose auto is another one goes on as before, or is refused where another is asked for."""
    config = small(tiny_folder, tmp_path / "run", iterations=1, eval_every=0)
    assert config.dtype == "auto"
    run(config)
    stored = load_yaml(tmp_path / "run" / "config.yaml")
    assert stored.dtype == "fp32"
    monkeypatch.setattr("dgpo.training.setup.precision_of", lambda dtype, device: "bf16" if dtype == "auto" else dtype)
    with pytest.raises(UserError, match="started with other values of dtype"):
        run(replace(config, iterations=2), resume=True)
    assert run(replace(stored, iterations=2), resume=True).iterations == 2
