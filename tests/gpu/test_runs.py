"""Whole small runs on the device: the pictures of the CPU, resume bit for bit, compile, memory, rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from medium import measured_peak, save_medium, short
from runs import MODES, assert_same_run, newest, rows, run, small
from tiny_published import save_clip
from torch import Tensor

from dgpo import Callback, Config
from dgpo.models import load_model
from dgpo.plan.estimates import estimate
from dgpo.rewards.builtin.clip import ClipScore
from dgpo.types import Rollout
from dgpo.utils.devices import cuda_or_cpu


class Heard(Callback):
    """Keeps what a run draws."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []

    def on_rollout(self, run: Any, rollout: Rollout) -> None:
        self.rollouts.append(rollout)


@pytest.mark.usefixtures("exact")
def test_the_first_rollout_is_that_of_the_cpu(device: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Noise is drawn on the CPU, so that only rounding differs."""
    drawn = []
    for place in ("cpu", device):
        heard = Heard()
        config = small(tiny_folder, tmp_path / f"{place}{len(drawn)}", device=place, dtype="fp32", iterations=1)
        run(config, callbacks=[heard])
        drawn.append(heard.rollouts[0])
    expected, rollout = drawn
    assert rollout.x0.device.type == torch.device(device).type
    assert rollout.images.device.type == "cpu"
    torch.testing.assert_close(rollout.images, expected.images, rtol=0, atol=1e-3)
    torch.testing.assert_close(rollout.rewards.cpu(), expected.rewards, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_resumed_is_the_run_never_stopped(
    mode: str, finetune: Any, device: str, deterministic: None, tiny_folder: Path, tmp_path: Path
) -> None:
    """Bit for bit, in bf16, with evaluations, averages, rollouts by `old` and the noise scale."""
    (tmp_path / "eval.txt").write_text("a cup\ngreen\n")

    def config(name: str, iterations: int) -> Config:
        return small(
            tiny_folder,
            tmp_path / name,
            mode,
            device=device,
            dtype="bf16",
            finetune=finetune,
            iterations=iterations,
            eval_every=2,
            eval_prompts={"seen": str(tmp_path / "eval.txt")},
            eval_images_per_prompt=1,
            num_samples=1,
            noise_scale_every=2,
        )

    run(config("whole", 4))
    run(config("parts", 2))
    run(config("parts", 4), resume=True)
    assert newest(tmp_path / "whole") == 4
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 4)


def test_compiled_blocks_answer_as_others_do(device: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Velocity and gradients. On a CPU blocks are traced only: code for it takes minutes to make."""
    if device == "cpu":
        default = torch.nn.Module.compile
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: default(module, backend="eager", **how))
    answers = []
    for compiled in (False, True):
        model = load_model(tiny_folder, device=device, dtype="bf16", sets=(), compile=compiled)
        x, t = model.init_noise([torch.Generator().manual_seed(0)]), torch.tensor([0.5])
        v = model.velocity(x, t, model.encode(["a red cat"]), 1.0)
        v.square().mean().backward()
        answers.append([v.detach(), *(p.grad for p in model.weights.parameters() if p.grad is not None)])
    torch.compiler.reset()
    assert len(answers[0]) == len(answers[1]) > 1
    for plain, compiled in zip(*answers):
        assert (plain - compiled).abs().mean() <= 0.05 * plain.abs().mean() + 1e-6


class Residents(Callback):
    """After each update: where the averages are, and what the device holds."""

    def __init__(self) -> None:
        self.places: set[str] = set()
        self.bytes: list[int] = []

    def on_iteration(self, run: Any, metrics: Any) -> None:
        averages = [p for name in ("old", "ema") for p in run.model.weights.own(name).values()]
        self.places |= {p.device.type for p in averages}
        if torch.cuda.is_available():
            self.bytes.append(torch.cuda.memory_allocated())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_averages_on_the_host_change_no_bit(
    finetune: Any, device: str, deterministic: None, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "eval.txt").write_text("a cup\n")
    sets = {"seen": str(tmp_path / "eval.txt")}
    looks = {"device": Residents(), "host": Residents()}
    for averages, look in looks.items():
        config = small(
            tiny_folder, tmp_path / averages, "cfg", device=device, dtype="bf16", finetune=finetune, eval_every=1,
            eval_prompts=sets, num_samples=0,
        )  # fmt: skip
        run(replace(config, averages=averages), callbacks=[look])
    assert_same_run(tmp_path / "device", tmp_path / "host", 3)
    assert looks["device"].places == {torch.device(device).type}
    assert looks["host"].places == {"cpu"}
    if device != "cpu" and finetune == "full":
        assert max(looks["host"].bytes) < min(looks["device"].bytes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bf16", "gradient_checkpointing": True, "micro_batch_size": 3},
        {"finetune": "full", "averages": "host", "gradient_checkpointing": True},
    ],
)
def test_the_plan_foresees_the_peak(changes: dict[str, Any], device: str, tmp_path: Path) -> None:
    """On CUDA kernels take their workspace of the same allocator, tens of MiB, which the plan says it does not count"""
    config = short(save_medium(tmp_path / "model"), tmp_path / "run", device=device, dtype="fp32")
    config = replace(config, **changes)
    found = estimate(config, 1, device == "cpu", "a red cat")
    assert found.peak is not None, found.unknown
    workspace = 0 if device == "cpu" else 128 * 2**20
    assert 0.95 * found.peak < measured_peak(config) < 1.05 * found.peak + workspace


def test_towers_of_rewards_are_on_the_gpu_and_score_pictures_of_the_cpu(tmp_path: Path) -> None:
    images: Tensor = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    folder, prompts = str(save_clip(tmp_path / "clip")), ["a cat", "two dogs", "a cup", "x"]
    scores = {place: ClipScore(folder, device=place)(images, prompts, [{}] * 4) for place in (None, "cpu")}
    assert scores[None].device.type == "cpu"
    torch.testing.assert_close(scores[None], scores["cpu"], rtol=1e-2, atol=1e-2)
    model = ClipScore(folder).towers.parts.model
    assert {p.device.type for p in model.parameters()} == {cuda_or_cpu()}


def test_a_run_with_such_a_reward_evaluates_and_leaves_a_lora(device: str, tiny_folder: Path, tmp_path: Path) -> None:
    clip = ClipScore(str(save_clip(tmp_path / "clip")), device=device)
    config = small(tiny_folder, tmp_path / "run", device=device, iterations=2, rewards={"mine": 1.0}, eval_every=1)
    result = run(replace(config, free_text_encoders=True), reward_functions={"mine": clip})
    assert len(rows(result.run)) >= 2
    assert (result.run / "final" / "pytorch_lora_weights.safetensors").is_file()
