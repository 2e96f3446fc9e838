"""Checkpoints are whole or absent, say which file is damaged, and give an optimizer back bit for bit."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgpo.errors import UserError
from dgpo.run import checkpoint, optimizer_state


def tensors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    policy = {"layer.weight": torch.randn(3, 2, generator=draw), "half": torch.randn(4, generator=draw).bfloat16()}
    return {"policy": policy, "optimizer": {"step.layer.weight": torch.tensor(7.0)}, "empty": {}}


def save(run, iteration, seed=0, **state):
    return checkpoint.save(run, iteration, tensors(seed), {"iteration": iteration, **state})


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, group in expected.items():
        assert got[name].keys() == group.keys()
        for key, tensor in group.items():
            assert got[name][key].dtype == tensor.dtype
            assert torch.equal(got[name][key], tensor)


def test_round_trip(tmp_path):
    path = save(tmp_path, 4, sampler={"position": 12}, best=0.1 + 0.2)
    assert path == tmp_path / "checkpoints" / "iteration-000004"
    assert sorted(os.listdir(path)) == sorted(
        ["checksums.json", "empty.safetensors", "optimizer.safetensors", "policy.safetensors", "state.json"]
    )
    got, state = checkpoint.load(path)
    assert_same(got, tensors())
    assert state == {"iteration": 4, "sampler": {"position": 12}, "best": 0.1 + 0.2}


def test_saves_views_and_shared_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    path = checkpoint.save(tmp_path, 1, {"policy": {"a": base, "b": base, "c": base.T, "d": base[1:]}}, {})
    got, _ = checkpoint.load(path)
    assert_same(got, {"policy": {"a": base, "b": base, "c": base.T, "d": base[1:]}})


def test_exports_are_inside_and_checked(tmp_path):
    def export(folder):
        (folder / "lora").mkdir()
        (folder / "lora" / "adapter.bin").write_bytes(b"weights")

    path = checkpoint.save(tmp_path, 1, tensors(), {}, extra=export)
    assert (path / "lora" / "adapter.bin").read_bytes() == b"weights"
    (path / "lora" / "adapter.bin").write_bytes(b"wrights")
    with pytest.raises(UserError, match=r"lora/adapter\.bin"):
        checkpoint.load(path)


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("harm", [flip_a_byte, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
def test_damage_is_named_and_the_one_before_offered(tmp_path, harm, name):
    save(tmp_path, 2)
    save(tmp_path, 4, seed=4)
    save(tmp_path, 6, seed=6)
    harm(tmp_path / "checkpoints" / "iteration-000004" / "policy.safetensors")
    harm(tmp_path / "checkpoints" / "iteration-000006" / name)
    with pytest.raises(UserError) as error:
        checkpoint.load(checkpoint.list_checkpoints(tmp_path)[-1])
    assert "iteration-000006 is damaged" in str(error.value)
    assert name in str(error.value)
    assert str(error.value).endswith(str(tmp_path / "checkpoints" / "iteration-000002"))


def test_damage_without_an_earlier_checkpoint(tmp_path):
    truncate(save(tmp_path, 2) / "policy.safetensors")
    save(tmp_path, 4)
    with pytest.raises(UserError, match="no intact checkpoint before it"):
        checkpoint.load(checkpoint.list_checkpoints(tmp_path)[0])
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere")


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path, 2)
    header = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**header, "format": 99, "dgpo": "7.5"}))
    with pytest.raises(UserError, match=r"format 99, written by dgpo 7\.5.*reads format 1"):
        checkpoint.load(path)


def test_saving_again_never_replaces(tmp_path):
    path = save(tmp_path, 2, note="first")
    inode = path.stat().st_ino
    save(tmp_path, 2, note="second")
    assert path.stat().st_ino == inode
    with pytest.raises(UserError, match="already holds other tensors"):
        save(tmp_path, 2, seed=1)
    got, state = checkpoint.load(path)
    assert_same(got, tensors())
    assert state["note"] == "first"


def test_damaged_checkpoint_is_set_aside_not_deleted(tmp_path):
    for seed in (1, 2):
        truncate(save(tmp_path, 2, seed=seed) / "policy.safetensors")
    path = save(tmp_path, 2, seed=3)
    assert_same(checkpoint.load(path)[0], tensors(3))
    shelf = tmp_path / "checkpoints" / "set-aside"
    assert sorted(os.listdir(shelf)) == ["000-iteration-000002", "001-iteration-000002"]


def test_rewind_sets_later_checkpoints_aside(tmp_path):
    for iteration in (2, 4, 6):
        save(tmp_path, iteration)
    checkpoint.rewind(tmp_path, 2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iteration-000002"]
    assert len(os.listdir(tmp_path / "checkpoints" / "set-aside")) == 2


def test_list_latest_and_prune(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for iteration in (1, 2, 3, 10, 1000000):
        save(tmp_path, iteration)
    (tmp_path / "checkpoints" / "iteration-notes").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "iteration-1000000"
    checkpoint.prune(tmp_path, keep_last=2, keep={2, 5})
    left = [checkpoint.iteration_of(path) for path in checkpoint.list_checkpoints(tmp_path)]
    assert left == [2, 10, 1000000]
    checkpoint.prune(tmp_path, keep_last=7)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 3
    with pytest.raises(UserError, match="keep_last=0"):
        checkpoint.prune(tmp_path, keep_last=0)


def test_failed_and_interrupted_saves_leave_nothing(tmp_path):
    def fail(folder):
        raise RuntimeError("export failed")

    with pytest.raises(RuntimeError, match="export failed"):
        checkpoint.save(tmp_path, 1, tensors(), {}, extra=fail)
    folder = tmp_path / "checkpoints"
    assert os.listdir(folder) == []
    (folder / ".partial-iteration-000003").mkdir()
    assert checkpoint.list_checkpoints(tmp_path) == []
    save(tmp_path, 4)
    assert os.listdir(folder) == ["iteration-000004"]


SAVE_FOREVER = """
import itertools, sys, torch
from dgpo.run import checkpoint
print("ready", flush=True)
for i in itertools.count(1):
    group = {str(k): torch.full((50, 50), float(i)) for k in range(20)}
    checkpoint.save(sys.argv[1], i, {"policy": group, "ema": group}, {"i": i})
    checkpoint.prune(sys.argv[1], keep_last=3, keep={1})
"""


@pytest.mark.slow
def test_kill_leaves_only_intact_checkpoints(tmp_path):
    wait = random.Random(0)
    for attempt in range(3):
        run = tmp_path / str(attempt)
        command = [sys.executable, "-c", SAVE_FOREVER, str(run)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while process.poll() is None and len(checkpoint.list_checkpoints(run)) < 3:
            time.sleep(0.001)
        time.sleep(wait.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for path in checkpoint.list_checkpoints(run):
            got, state = checkpoint.load(path)
            assert checkpoint.iteration_of(path) == state["i"] == got["ema"]["7"][0, 0]


def test_free_space(tmp_path, monkeypatch):
    checkpoint.require_free_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(UserError, match=r"needs 1000000000\.000 GB, and its disk has [\d.]+ GB free"):
        checkpoint.require_free_space(tmp_path / "not" / "yet", 10**18)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=3))
    with pytest.raises(UserError, match="GB free"):
        save(tmp_path, 1)
    assert not (tmp_path / "checkpoints").exists()


def adamw(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters["1.weight"], parameters["0.bias"]], "lr": 0.1},
        {"params": [parameters["0.weight"], parameters["1.bias"]], "weight_decay": 0.5},
    ]
    return model, torch.optim.AdamW(groups, lr=0.01), ["1.weight", "0.bias", "0.weight", "1.bias"]


def train(model, optimizer, steps):
    x = torch.linspace(-1, 1, 15).reshape(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def test_optimizer_continues_bit_for_bit(tmp_path):
    model, optimizer, names = adamw()
    train(model, optimizer, 3)
    saved = optimizer_state.optimizer_tensors(optimizer, names)
    assert set(saved) == {f"{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names}
    assert saved["exp_avg.0.weight"].shape == model[0].weight.shape
    path = checkpoint.save(tmp_path, 3, {"optimizer": saved}, {})
    weights = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)

    other, fresh, names = adamw(seed=1)
    other.load_state_dict(weights)
    optimizer_state.load_optimizer_tensors(fresh, names, checkpoint.load(path)[0]["optimizer"])
    train(other, fresh, 3)
    assert_same({"model": other.state_dict()}, {"model": model.state_dict()})
    assert_same(
        {"optimizer": optimizer_state.optimizer_tensors(fresh, names)},
        {"optimizer": optimizer_state.optimizer_tensors(optimizer, names)},
    )


def test_optimizer_before_its_first_step(tmp_path):
    model, optimizer, names = adamw()
    assert optimizer_state.optimizer_tensors(optimizer, names) == {}
    train(model, optimizer, 1)
    optimizer_state.load_optimizer_tensors(optimizer, names, {})
    assert optimizer_state.optimizer_tensors(optimizer, names) == {}


def test_loaded_optimizer_shares_nothing_with_the_source():
    model, optimizer, names = adamw()
    train(model, optimizer, 1)
    before = {name: tensor.clone() for name, tensor in optimizer_state.optimizer_tensors(optimizer, names).items()}
    other, fresh, names = adamw()
    optimizer_state.load_optimizer_tensors(fresh, names, optimizer_state.optimizer_tensors(optimizer, names))
    train(other, fresh, 2)
    assert_same({"o": optimizer_state.optimizer_tensors(optimizer, names)}, {"o": before})


def test_optimizer_of_another_model_is_refused():
    model, optimizer, names = adamw()
    train(model, optimizer, 1)
    saved = optimizer_state.optimizer_tensors(optimizer, names)
    with pytest.raises(UserError, match=r"'2\.weight', which is not among"):
        optimizer_state.load_optimizer_tensors(optimizer, names, {"exp_avg.2.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'0.weight' has shape \(2, 2\), the parameter \(4, 3\)"):
        optimizer_state.load_optimizer_tensors(optimizer, names, {**saved, "exp_avg.0.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="holds 4 parameters and got 3"):
        optimizer_state.optimizer_tensors(optimizer, names[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(dtype, value):
    large = torch.full((3, 40_000), 6e4, dtype=dtype)  # whose sum a half could not hold
    codes = torch.full((4,), 255, dtype=torch.uint8)
    assert checkpoint.not_finite({"policy": {"w": large, "codes": codes}, "optimizer": {}}) == []
    large[2, 7] = value
    assert checkpoint.not_finite({"policy": {"w": large}, "ema": {"w": codes}}) == ["policy"]
    large[0, 0] = -value
    assert checkpoint.not_finite({"policy": {"w": large}}) == ["policy"]
