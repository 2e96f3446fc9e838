"""A network spread over processes trains as one held whole; its checkpoints go on with any number of processes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
from runs import ROUNDING, assert_same_run, distance, newest, rows, run, small, write_pictures
from safetensors.torch import load_file, save_file
from tiny import tiny_sd3
from tiny_families import TINY

from dgpo import DGPO, Config, LoraConfig, Optimizer, Sampling, distributed, load_model
from dgpo.algorithms import AWM, CRD, RAM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.algorithms.registry import BUILT_IN
from dgpo.config import load_yaml
from dgpo.core import seeds
from dgpo.distributed import lockstep, sharded
from dgpo.distributed.lockstep import Lockstep
from dgpo.distributed.watch import Board, Watch
from dgpo.errors import NonFiniteError, UserError
from dgpo.models import FAMILIES
from dgpo.plan import fitting
from dgpo.plan.checks import run_checks
from dgpo.plan.estimates import estimate
from dgpo.run import checkpoint, shards
from dgpo.training.setup import require_feasible

pytestmark = pytest.mark.slow

ALGORITHMS = {
    "dgpo": DGPO(beta=3.0, num_points=2, trunc_steps=2, old_decay_rate=0.2),
    "flow_grpo": FlowGRPO(),
    "diffusion_nft": DiffusionNFT(num_points=2, trunc_steps=2, old_decay_rate=0.2),
    "awm": AWM(num_points=2),
    "diffusion_dpo": DiffusionDPO(beta=30.0, num_points=2),
    "ram": RAM(num_points=2),
    "crd": CRD(num_points=2, trunc_steps=2),
}


FROZEN = "transformer, frozen"
EXPORTED = ("continued", "best")
UNEVEN = ("uneven, lora", "uneven, full", "offline")


def cases(model: Path, out: Path) -> dict[str, Config]:
    """Every algorithm with all weights; and what makes ranks unequal: groups cut in two, prompts for one rank only."""
    (out / "eval.txt").write_text("a cup\n")
    evaluated: dict[str, Any] = {"eval_every": 2, "eval_prompts": {"one": str(out / "eval.txt")}, "num_samples": 0}
    uneven: dict[str, Any] = {"num_groups": 3, "group_size": 5, "micro_batch_size": 1, **evaluated}
    full = {"finetune": "full"}
    changes: dict[str, dict[str, Any]] = {
        "uneven, lora": uneven,
        "uneven, full": {**uneven, **full, "gradient_checkpointing": True},
        "noise": {"num_groups": 4, "noise_scale_every": 1, "free_text_encoders": True},
        "continued": {"lora": LoraConfig(start=str(out.parent / "lora")), "gradient_checkpointing": True},
        "best": {**full, "checkpoint_every": 1},
        "offline": {"offline": str(out.parent / "pictures")},
    }
    for name, algorithm in ALGORITHMS.items():
        changes[name] = {**full, "algorithm": algorithm, "updates_per_rollout": 2, "optimizer": Optimizer(lr=5e-4)}
    usual = {"iterations": 2, "checkpoint_every": 2}
    return {name: small(model, out / name, **{**usual, **some}) for name, some in changes.items()}


def spread(config: Config, out: Path) -> Config:
    """The same with its weights spread, in another folder."""
    return replace(config, shard="full", out=str(out / Path(config.out or "").name))


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of all cases on one process, and sharded on two; and of bf16 on two processes, each whole and sharded."""
    folder = tmp_path_factory.mktemp("sharded")
    one, two = folder / "one", folder / "two"
    for made in (one, two):
        made.mkdir()
    write_pictures(folder / "pictures")
    begun = load_model(tiny_folder, device="cpu", lora=LoraConfig(rank=3, alpha=6), seed=7)
    for key, tensor in begun.weights.tensors("policy").items():
        tensor.add_(0.02 * torch.randn(tensor.shape, generator=seeds.generator(0, key)))
    begun.weights.export(folder / "lora", "policy")
    configs = [*cases(tiny_folder, one).values()]
    half = small(
        tiny_folder,
        one / "bf16",
        finetune="full",
        dtype="bf16",
        gradient_checkpointing=True,
        iterations=2,
        group_size=4,
        checkpoint_every=2,
    )
    alone = ranks.start(1, ranks.all_of, configs)
    pair = ranks.start(2, ranks.all_of, [half, *(spread(config, two) for config in [*configs, half])])
    assert ranks.end(alone) == [0]
    assert ranks.end(pair) == [0, 0]
    return one, two


def weights(out: Path, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
    return checkpoint.load(checkpoint.folder_of(out, iteration))[0]


@pytest.mark.parametrize("name", [*BUILT_IN, "uneven, lora", "uneven, full", "noise", "offline", *EXPORTED, "bf16"])
def test_sharded_equals_whole(folders: tuple[Path, Path], name: str) -> None:
    """To rounding: in bf16 a block sums the gradients of its inputs on its own, before they are added."""
    one, two = (folder / name for folder in folders)
    whole, spread = weights(one, 2), weights(two, 2)
    assert whole.keys() == spread.keys() >= {"policy", "ema", "optimizer"}
    off = 3e-3 if name == "bf16" else ROUNDING
    for part in whole.keys() - ({"optimizer"} if name == "bf16" else set()):
        assert distance(spread[part], whole[part]) < off, part
    assert distance(whole["policy"], weights(one, 1 if name == "best" else 0)["policy"]) > 1e-4
    for left, right in zip(rows(two), rows(one), strict=True):
        if name in UNEVEN:  # groups that are cut take a pass for their totals
            assert left.pop("train/forwards", 0) >= right.pop("train/forwards", 0)
        if name == "noise":
            assert (left.pop("train/grad_signal") > 0) == (left.pop("train/grad_noise_scale") is not None)
            right = {key: right[key] for key in left}
        if name != "bf16" or left["iteration"] == 1:
            assert left == pytest.approx(right, rel=1e-2 if name == "bf16" else 1e-3, abs=1e-5)
    exports = [[*sorted(out.glob("final/**/*.safetensors")), *out.glob("best/**/*.safetensors")] for out in (two, one)]
    assert [file.name for file in exports[0]] == [file.name for file in exports[1]] != []
    assert len(exports[0]) == (2 if name == "best" else 1)
    for exported, expected in zip(*exports):
        assert distance(load_file(exported), load_file(expected)) < off
    configs = [[*(out / "final").glob("transformer/config.json")] for out in (two, one)]
    assert [file.read_bytes() for file in configs[0]] == [file.read_bytes() for file in configs[1]]


@pytest.mark.parametrize("name", ["dgpo", "uneven, full", "uneven, lora", "bf16"])
def test_each_rank_holds_its_share(folders: tuple[Path, Path], name: str) -> None:
    one, two = (folder / name for folder in folders)
    whole = ranks.held(one, 0)
    for rank in (0, 1):
        own = ranks.held(two, rank)
        for part in whole:
            assert own[part] <= 1.15 * whole[part] / 2, part
            assert own[part] > 0 or not whole[part]


@pytest.mark.parametrize("name", ["dgpo", "uneven, lora", "bf16"])
def test_the_plan_foresees_what_a_rank_holds(folders: tuple[Path, Path], name: str) -> None:
    config = load_yaml(folders[1] / name / "config.yaml")
    spread, whole = (estimate(replace(config, shard=shard), 2, True, "a red cat") for shard in ("full", "none"))
    assert not spread.unknown
    assert spread.held is not None
    assert whole.held is not None
    measured = ranks.held(folders[1] / name, 0)
    planned = spread.held
    assert measured["gradients"] == pytest.approx(planned.gradients, rel=0.05)
    assert measured["moments"] == pytest.approx(planned.moments, rel=0.05)
    frozen = 2 * (whole.held.parts.get(FROZEN, 0) - planned.parts.get(FROZEN, 0))  # what of it is shared
    assert measured["network"] + measured["sets"] == pytest.approx(planned.trained + frozen / 2, rel=0.05)
    assert spread.phases["updating"] > planned.total + planned.gathered


def test_the_plan_refuses_to_share_with_nobody(folders: tuple[Path, Path]) -> None:
    config = load_yaml(folders[1] / "dgpo" / "config.yaml")
    found = run_checks(estimate(config, 1, True, "a red cat"), None, False)
    assert any("this is one" in check.text for check in found if not check.ok)


def test_the_plan_advises_several_processes_to_share(tmp_path: Path) -> None:
    config = small(tmp_path, tmp_path)
    advised = {processes: [saving.flag for saving in fitting._savings(config, processes)] for processes in (1, 2)}
    assert "--shard full" in advised[2]
    assert "--shard full" not in advised[1]
    for other in ({"shard": "full"}, {"compile": True}, {"base_precision": "int8"}):
        assert "--shard full" not in [saving.flag for saving in fitting._savings(replace(config, **other), 2)]


def test_checkpoints_hold_no_pickle_and_each_rank_writes_its_rows(folders: tuple[Path, Path]) -> None:
    path = checkpoint.folder_of(folders[1] / "dgpo", 2)
    names = {file.name for file in path.iterdir()}
    assert names == {"checksums.json", "state.json", "config.yaml"} | {
        f"{name}-{rank}-of-2.safetensors" for name in ("policy", "old", "ema", "optimizer") for rank in (1, 2)
    }
    parts = [load_file(path / f"policy-{rank}-of-2.safetensors") for rank in (1, 2)]
    whole = load_file(checkpoint.folder_of(folders[0] / "dgpo", 2) / "policy.safetensors")
    assert all(len(parts[0][key]) + len(parts[1][key]) == len(whole[key]) for key in whole)


def test_every_family_answers_alike(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in FAMILIES}
    for name, folder in folders.items():
        TINY[name].make(0).save_pretrained(folder)
    ranks.together(2, ranks.families, folders, {name: TINY[name].settings for name in FAMILIES})


def test_a_reference_in_bf16_answers_alike(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in FAMILIES}
    for name, folder in folders.items():
        TINY[name].make(0).save_pretrained(folder)
    ranks.together(2, ranks.halves, folders, {name: {**TINY[name].settings, **TINY[name].bf16} for name in FAMILIES})


def test_no_rank_ever_holds_all_weights(tmp_path: Path) -> None:
    """Of ten blocks one is whole at a time, and at the end what is in no block."""
    pipeline = tiny_sd3()
    deep = {**pipeline.transformer.config, "num_layers": 10}
    pipeline.transformer = type(pipeline.transformer).from_config(deep)
    pipeline.save_pretrained(tmp_path / "deep")
    ranks.together(2, ranks.reading, tmp_path / "deep", tmp_path)
    for rank in (0, 1):
        most, all_of_them = json.loads((tmp_path / f"read-{rank}.json").read_text())
        assert all_of_them >= sum(p.nbytes for p in pipeline.transformer.parameters())
        assert most < 0.25 * all_of_them


@pytest.mark.parametrize("name", ["dgpo", "uneven, full", "uneven, lora"])
def test_averages_on_the_host_change_nothing(folders: tuple[Path, Path], name: str, tmp_path: Path) -> None:
    """Each rank's rows visit; those of a LoRA stay with the network, with which they are gathered."""
    usual = load_yaml(folders[1] / name / "config.yaml")
    ranks.together(2, ranks.visited, replace(usual, averages="host", out=str(tmp_path / name)))
    assert_same_run(tmp_path / name, folders[1] / name, 2)
    for rank in (0, 1):
        after, most = json.loads((tmp_path / f"{name}-visited-{rank}.json").read_text())
        held = ranks.held(tmp_path / name, rank)
        assert after == 0
        assert held["gradients"] == 0
        if name == "uneven, lora":
            assert most == 0
        else:
            share = ranks.held(folders[1] / name, rank)["gradients"]
            assert share <= most < 1.2 * share, "one average's rows, and their padding"


# --- checkpoints


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three iterations of two processes; and the first of them alone, from which others go on."""
    folder = tmp_path_factory.mktemp("straight")
    config = small(
        tiny_folder, folder / "whole", finetune="full", iterations=3, noise_scale_every=2, shard="full",
        keep_checkpoints=1,
    )  # fmt: skip
    ranks.together(2, ranks.all_of, [config, replace(config, iterations=1, out=str(folder / "begun"))])
    return config


def begun(straight: Config, name: str) -> Config:
    """A run of its own that has had its first iteration."""
    folder = Path(straight.out or "").parent
    shutil.copytree(folder / "begun", folder / name)
    return replace(straight, out=str(folder / name))


def assert_same_to_rounding(config: Config, straight: Config) -> None:
    own, expected = weights(Path(config.out or ""), 3), weights(Path(straight.out or ""), 3)
    for part in expected:
        assert distance(own[part], expected[part]) < ROUNDING, part


def test_as_many_processes_resume_bit_for_bit(straight: Config) -> None:
    config = begun(straight, "two")
    ranks.together(2, run, config, True)
    assert_same_run(Path(config.out or ""), Path(straight.out or ""), 3)


def test_other_numbers_of_processes_go_on(straight: Config) -> None:
    """Four from two, one that does not shard from two, and two from the one's."""
    four, one = begun(straight, "four"), replace(begun(straight, "one"), shard="none")
    ranks.together(4, run, four, True)
    assert_same_to_rounding(four, straight)
    assert len([*checkpoint.folder_of(four.out or "", 3).glob("policy-*-of-4.safetensors")]) == 4
    run(replace(one, iterations=2), resume=True)
    assert (checkpoint.folder_of(one.out or "", 2) / "policy.safetensors").is_file()
    ranks.together(2, run, replace(one, shard="full"), True)
    assert_same_to_rounding(one, straight)


def test_a_killed_process_ends_all_and_the_run_goes_on_bit_for_bit(straight: Config) -> None:
    folder = Path(straight.out or "").parent
    config = replace(straight, out=str(folder / "killed"))
    codes = ranks.end(ranks.start(2, ranks.killed, config))
    assert codes[1] == -9
    assert codes[0] not in (0, -9)
    assert newest(folder / "killed") == 1
    pair = ranks.start(2, run, config, True)
    pause = random.Random(0).uniform(0.5, 1.5)
    time.sleep(pause)
    for process in pair:
        process.kill()
    ranks.end(pair)
    ranks.together(2, run, config, True)
    assert_same_run(folder / "killed", Path(straight.out or ""), 3)


def test_a_damaged_file_of_any_rank_is_named(straight: Config) -> None:
    config = begun(straight, "damaged")
    file = checkpoint.folder_of(config.out or "", 1) / "optimizer-2-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"optimizer-2-of-2.safetensors is not what was written"):
        checkpoint.load(file.parent)
    assert ranks.end(ranks.start(2, ranks.refused, config, True, "optimizer-2-of-2.safetensors is not what")) == [0, 0]


def test_a_checkpoint_of_another_model_is_refused(straight: Config) -> None:
    config = begun(straight, "other")
    path = checkpoint.folder_of(config.out or "", 1)
    tensors, state = checkpoint.load(path)
    shutil.rmtree(path)
    wider = {
        name: {key: torch.cat([t, t]) if t.dim() else t for key, t in part.items()} for name, part in tensors.items()
    }
    checkpoint.save(config.out or "", 1, wider, state)
    assert ranks.end(ranks.start(2, ranks.refused, config, True, "belongs to another model")) == [0, 0]


@pytest.mark.parametrize("total", [0, 1, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_rows_written_by_some_ranks_are_read_by_others(tmp_path: Path, total: int, number: int) -> None:
    whole = {"a": torch.arange(3.0 * total).reshape(total, 3), "step": torch.tensor(7.0)}
    for rank in range(number):
        rows = sharded.rows_of(total, rank, number)
        save_file(
            {"a": whole["a"][rows].clone(), "step": whole["step"]}, tmp_path / shards.file_name("p", rank, number)
        )
    assert torch.equal(shards.read(tmp_path, "p", number)["a"], whole["a"])
    for others in (1, 2, 3, 4):
        for rank in range(others):
            rows = partial(sharded.rows_of, rank=rank, world_size=others)
            read = shards.read(tmp_path, "p", number, rows)
            assert torch.equal(read["a"], whole["a"][rows(total)])
            assert read["step"] == 7


# --- failures


def test_a_failing_reward_of_one_rank_loses_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """Its rank stops between two calls of the network, and the others with it, before the next."""
    config = small(
        tiny_folder, tmp_path / "run", group_size=4, sampling=Sampling(num_inference_steps=3, batch_size=2),
        shard="full", checkpoint_every=10,
    )  # fmt: skip
    codes = ranks.end(ranks.start(2, ranks.reward_fails, config))
    assert codes == [1, 1]
    assert newest(tmp_path / "run") == 1
    assert "the judge is away" in (tmp_path / "run" / "failure.txt").read_text()


def test_what_fails_inside_the_network_ends_all(tiny_folder: Path, tmp_path: Path) -> None:
    """The others wait for weights that do not come, until its process has gone; none can save."""
    config = small(tiny_folder, tmp_path / "run", shard="full", checkpoint_every=10)
    codes = ranks.end(ranks.start(2, ranks.out_of_memory, config))
    assert codes == [1, 1]
    assert newest(tmp_path / "run") == 0


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_inside_the_network_is_named(
    blow: int, backward: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    """The others wait in a gather of weights or a sum of gradients, which no code of ours calls."""
    config = small(tiny_folder, tmp_path / "run", shard="full", checkpoint_every=10, rank_timeout_minutes=0.05)
    pair = ranks.start(2, ranks.killed_inside, config, backward, blow)
    assert ranks.end(pair[:1], 60) == [1]
    pair[1].kill()
    ranks.end(pair)
    said = (tmp_path / "run.log").read_text()
    assert f"rank 1 of 2 (process {pair[1].pid} on {socket.gethostname()}) has died" in said


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_in_a_call_that_others_only_help_with_is_named(blow: int, tmp_path: Path) -> None:
    pair = ranks.start(2, ranks.helping, tmp_path / "log", blow)
    assert ranks.end(pair[:1], 60) == [1]
    pair[1].kill()
    ranks.end(pair)
    said = (tmp_path / "log").read_text()
    assert f"rank 1 of 2 (process {pair[1].pid} on {socket.gethostname()}) has died" in said


class Clock:
    """Stands in for the watch: whether this process waits for others."""

    waits = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lockstep, "_current", None)  # a Lockstep puts itself there
        monkeypatch.setattr(lockstep, "wait", self.set)
        monkeypatch.setattr(lockstep, "world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.all_reduce", lambda *_: None)

    def set(self, waits: bool) -> None:
        self.waits = waits


def test_an_error_between_a_forward_and_its_backward_leaves_no_clock_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process does of it, such as saving, may take as long as it likes. And its own errors name nobody."""
    clock, steps = Clock(monkeypatch), Lockstep(("policy",), lambda _: None)
    monkeypatch.setattr(Watch, "missing", lambda _: "rank 1 of 2 has died")
    monkeypatch.setattr("dgpo.distributed.collectives.lost", Watch(Board(), 0, 2, 60.0).lost)
    inside = []

    def work() -> None:
        with steps.call("policy"):
            pass
        inside.append(clock.waits)
        raise NonFiniteError("the loss is not finite")

    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        distributed.together(work)
    assert inside == [True]
    assert not clock.waits
    assert not steps.inside


def test_a_call_on_a_gpu_is_waited_for_with_the_clock_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is only queued: what the sampler asks of it next would wait, and nobody would see it."""
    clock, steps = Clock(monkeypatch), Lockstep(("policy",), lambda _: None)
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    stream = SimpleNamespace(synchronize=lambda: waited.append(clock.waits))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    with torch.no_grad(), steps.call("policy"):
        assert clock.waits
    assert waited == [True]
    assert not clock.waits


def test_one_process_cannot_shard(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "nowhere", tmp_path / "run", shard="full")
    with pytest.raises(UserError, match=r"shard='full' spreads the weights over several processes, and this is one"):
        run(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"torchrun --standalone"):
        load_model(tiny_folder, device="cpu", shard="full")


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"diffusers names no blocks of a Linear"):
        sharded.require_blocks(torch.nn.Linear)


@pytest.mark.parametrize(
    ("other", "advice"),
    [({"compile": True}, "compile=False"), ({"optimizer": Optimizer(name="adamw8bit")}, "take adamw,")],
)
def test_what_does_not_go_with_sharding(tmp_path: Path, other: dict[str, Any], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        small(tmp_path, tmp_path, shard="full", **other)


def test_a_model_that_was_loaded_whole_is_not_taken_for_a_sharded_one(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tiny_folder, tmp_path / "run", shard="full")
    with pytest.raises(
        UserError, match=r"the given model is not sharded; load it with load_model\(..., shard='full'\)"
    ):
        require_feasible(load_model(tiny_folder, device="cpu"), config, resume=False)
