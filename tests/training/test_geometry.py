"""What the plan and the console say of an iteration is what the loop then does, counted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import geometry_worker
import pytest
import torch
from counting import CASES, COUNTED, SEVERAL, Counts, case, counted
from runs import rows, run, small

from dgpo import CRD, DGPO, RAM, Config, Sampling
from dgpo.algorithms.registry import BUILT_IN, algorithm_class
from dgpo.plan.estimates import estimate
from dgpo.plan.meta import Count
from dgpo.plan.page import lines
from dgpo.plan.runs import Runs
from dgpo.plan.speed import work
from dgpo.training import saving, schedule
from dgpo.training.geometry import geometry, held_images, network_forwards
from dgpo.training.schedule import guided_rows

UNIT = Count(flops=1)


def policy_rows(config: Config) -> int:
    return guided_rows(config.algorithm.policy_guidance(config.sampling.guidance_scale))


def forwards(counts: Counts) -> int:
    """A backward counts as two."""
    return sum(counts.sampling) + sum(counts.frozen.values()) + 3 * sum(map(sum, counts.updates))


def test_a_run_counts_its_forwards(tiny_folder: Path, tmp_path: Path) -> None:
    """6 images, 3 guided steps; 2 points of ref and the policy with its backward, and of `old` once it is another."""
    config = small(tiny_folder, tmp_path, iterations=3)
    run(config)
    forwards = [row["train/forwards"] for row in rows(tmp_path)]
    sampled, trained, with_old = 6 * 3 * 2, 6 * 2 * 4, 6 * 2 * 5
    assert network_forwards(config) == sampled + with_old
    assert forwards == [
        sampled + trained,
        2 * sampled + 2 * trained,
        3 * sampled + 2 * trained + with_old,
    ]  # a copy twice


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_process_does_what_is_foreseen(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = case(tiny_folder, tmp_path / "run", CASES[name])
    found, g = counted(config), geometry(config, 1)
    images, rows = config.num_groups * config.group_size, guided_rows(config.sampling.guidance_scale)
    assert found.images == g.images == g.drawn == images
    assert found.trained == g.trained
    assert sum(found.sampling) == images * g.solver_calls * rows
    assert max(found.sampling) == g.sampling_batch * rows
    assert found.decoding[0] == max(found.decoding) == g.sampling_batch
    assert len(found.decoding) == -(-images // g.sampling_batch)

    steps = range(COUNTED * g.updates, (COUNTED + 1) * g.updates)
    measured = [schedule.measures_noise(config, step, 1) and of_one_size(config, step % g.updates) for step in steps]
    assert found.meters == sum(measured)
    assert (g.group_batch is not None) or not any(measured)
    assert len(found.updates) == g.updates
    for update, by_group in zip(found.updates, measured):
        size = g.group_batch if by_group and g.group_batch else g.micro_batch
        if not config.split_updates:
            assert max(update) == size * policy_rows(config)
            assert len(update) == g.points * -(-g.update_images // size)
        assert max(update) <= size * policy_rows(config)
    assert max(sum(update) for update in found.updates) == g.update_images * g.points * policy_rows(config)
    # every update has all images that train, or its part of them
    assert sum(map(sum, found.updates)) == g.trained * g.points * policy_rows(config) * passes(config)

    assert set(found.frozen) == frozen_sets(config)
    assert forwards(found) == network_forwards(config)
    # a row each, so that work counts rows
    scale = config.sampling.guidance_scale
    runs = Runs(0, Count(), Count(flops=g.sampling_batch * guided_rows(scale)), UNIT, Count(flops=g.micro_batch), None)
    planned = work(config, g, runs)
    assert planned["sampling"].flops == sum(found.sampling)
    assert planned["decoding"].flops == images / g.sampling_batch
    assert planned["frozen forwards"].flops == sum(found.frozen.values())
    assert planned["forwards and backwards"].flops * policy_rows(config) == sum(map(sum, found.updates))


def of_one_size(config: Config, update: int) -> bool:
    """Whether all groups have as many images in an update, where all images train."""
    if not config.split_updates:
        return True
    groups = torch.arange(config.num_groups * config.group_size).view(config.num_groups, -1)
    return len((groups % config.updates_per_rollout == update).sum(1).unique()) == 1


def passes(config: Config) -> int:
    return 1 if config.split_updates else config.updates_per_rollout


def frozen_sets(config: Config) -> set[str]:
    """Those that the loop must evaluate without gradient: `policy` is the pass for the totals of groups."""
    g = geometry(config, 1)
    return (
        (config.algorithm.needs & {"ref"})
        | ({"old"} if g.old_updates else set[str]())
        | ({"policy"} if g.splits else set[str]())
    )


@pytest.fixture(scope="module")
def several(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Counts]]:
    """The counts of SEVERAL on each of two processes."""
    out = tmp_path_factory.mktemp("counts")
    worker = Path(geometry_worker.__file__)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(worker.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launch, str(worker), str(tiny_folder), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return [{name: Counts(**counts) for name, counts in rank.items()} for rank in ranks]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_two_processes_do_what_is_foreseen(name: str, several: list[dict[str, Counts]], tiny_folder: Path) -> None:
    config = case(tiny_folder, tiny_folder, SEVERAL[name])
    found, g = [rank[name] for rank in several], geometry(config, 2)
    chosen = schedule.trained_images(config) < config.group_size and config.num_groups % 2 > 0
    rows = guided_rows(config.sampling.guidance_scale)
    assert max(rank.images for rank in found) == g.images
    assert max(max(rank.decoding) for rank in found) == g.sampling_batch
    assert max(max(rank.sampling) for rank in found) == g.sampling_batch * rows
    largest = max(rank.trained for rank in found)
    assert largest <= g.trained if chosen else largest == g.trained  # which images are chosen, scores decide
    assert [rank.meters for rank in found] == [g.updates if g.group_batch else 0] * 2
    assert max(len(update) for rank in found for update in rank.updates) <= g.backwards or g.group_batch
    widest = max(max(update, default=0) for rank in found for update in rank.updates)
    assert widest <= (g.group_batch or g.micro_batch) * policy_rows(config)
    if not chosen:
        assert any("policy" in rank.frozen for rank in found) == g.splits
        assert widest == (g.group_batch or g.micro_batch) * policy_rows(config)
    if not config.redraw_groups and g.splits == any("policy" in rank.frozen for rank in found):
        assert sum(map(forwards, found)) == network_forwards(config, 2)


def test_who_holds_what_in_the_worst_case() -> None:
    """Four groups of three on two processes: the second pair is drawn again, and half of what is drawn each time."""
    config = Config(num_groups=4, group_size=3, drop_equal_groups=True, redraw_groups=3, rewards={"random": 1.0})
    assert [*held_images(config, 0, 2)] == [
        *((0, i) for i in (0, 1, 2)),
        *((1, i) for i in (3, 4, 5)),
        *((2, i) for i in (18, 19, 20)),  # of six drawn again
        (3, 33),  # of three
    ]
    assert len([*held_images(config, 0, 1)]) == 12
    g = geometry(config, 2)
    assert (g.drawn, g.images, g.splits, g.group_batch) == (6, 11, True, None)  # the second has two of the last three


def test_reward_failures_that_drop_images_may_leave_groups_that_do_not_fit() -> None:
    config = Config(rewards={"shapes": 1.0}, num_groups=4, group_size=4, micro_batch_size=4)
    assert not geometry(config, 1).splits
    dropping: dict[str, Any] = {"reward_failures": {"shapes": "drop"}}
    assert geometry(replace(config, **dropping), 1).splits
    assert not geometry(replace(config, **dropping, micro_batch_size=None), 1).splits


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "every"), [(3, 2), (2, 2), (2, 5)])
def test_evaluations_and_checkpoints_are_made_where_they_are_due(
    iterations: int, every: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seen.txt").write_text("a red cat\n")
    config = small(
        tiny_folder,
        tmp_path / "run",
        iterations=iterations,
        eval_every=every,
        checkpoint_every=every,
        eval_prompts={"seen": str(tmp_path / "seen.txt")},
        eval_images_per_prompt=1,
        num_samples=0,
    )
    saved = []
    monkeypatch.setattr(saving, "save", lambda run, model, optimizer, state, config: saved.append(state.iteration))
    monkeypatch.setattr(saving, "finish", lambda *_: None)
    run(config)
    evaluated = [row["iteration"] for row in rows(tmp_path / "run") if "eval/seen/reward" in row]
    for due, made in ((schedule.evaluates, evaluated), (schedule.saves, saved)):
        assert made == [i for i in range(iterations + 1) if due(config, i, i == iterations)]
    page = "\n".join(lines(estimate(config, 1, True, "a red cat"), [], None))
    assert f"{len(evaluated)} evaluations of 1 images a prompt, {len(saved)} checkpoints and one after" in page


def test_the_forwards_that_the_documentation_tells() -> None:
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    told = {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", text, re.MULTILINE)}
    sampling = Sampling(num_inference_steps=10, guidance_scale=1.0)
    images = 4 * 16
    assert told == {
        name: network_forwards(
            Config(num_groups=4, group_size=16, sampling=sampling, algorithm=algorithm_class(name)())
        )
        // images
        for name in BUILT_IN
    }


@pytest.mark.parametrize(
    ("sampling", "algorithm", "updates", "per_image"),
    [
        (Sampling(guidance_scale=1.0), DGPO(num_points=4, kl_coef=0, reference="old", clip_range=None), 1, 10 + 4 * 4),
        (Sampling(guidance_scale=4.5), DGPO(num_points=4), 1, 20 + 4 * 5),
        (Sampling(guidance_scale=1.0), DGPO(num_points=4, ref_guidance_scale=4.5), 2, 10 + 2 * 4 * 6),
        (Sampling(guidance_scale=1.0, solver="heun"), DGPO(num_points=1, clip_range=None), 1, 19 + 4),
        (Sampling(guidance_scale=4.5), RAM(), 1, 20 + 8 * 5),  # the policy and its backward, ref and old
        (Sampling(guidance_scale=4.5), RAM(sampler_weights="policy"), 1, 20 + 8 * 4),
        (Sampling(guidance_scale=1.0), CRD(), 1, 10 + 9 * 6),  # the same with guidance for ref
        (Sampling(guidance_scale=1.0), CRD(kl_coef=0.0), 2, 10 + 2 * 9 * 4),
    ],
)
def test_network_forwards_counted_by_hand(sampling: Sampling, algorithm: Any, updates: int, per_image: int) -> None:
    config = Config(num_groups=2, group_size=3, sampling=sampling, algorithm=algorithm, updates_per_rollout=updates)
    assert network_forwards(config) == 6 * per_image
