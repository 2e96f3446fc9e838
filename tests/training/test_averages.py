"""Averages in host memory: a run is the same, bit for bit, and none is on the device but while it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_gpu import FakeGpu
from runs import MODES, assert_same_run, run, small

from dgpo import Callback, Config
from dgpo.models import visits

pytestmark = pytest.mark.slow


class Looks(Callback):
    """At the device, after every update and evaluation."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.after_updates, self.gradients = gpu, list[int](), 0

    def on_iteration(self, run: Any, metrics: Any) -> None:
        self.after_updates.append(sum(self.gpu.alive.values()))
        self.gradients += sum(p.grad is not None for p in run.model.weights.parameters())


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_the_same(
    mode: str, finetune: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts and answers by `old`, evaluations by `ema`, checkpoints, a resume and the export."""
    (tmp_path / "eval.txt").write_text("a cup\n")

    def config(name: str, **changes: Any) -> Config:
        sets = {"seen": str(tmp_path / "eval.txt")}
        given = {"eval_every": 1, "eval_prompts": sets, "num_samples": 0, "finetune": finetune, **changes}
        return small(tiny_folder, tmp_path / name, mode, **given)

    run(config("device"))
    gpu = FakeGpu()
    monkeypatch.setattr(visits, "copied", gpu.copied)
    looks = Looks(gpu)
    run(config("host", averages="host", iterations=2), callbacks=[looks])
    run(config("host", averages="host"), resume=True)
    assert_same_run(tmp_path / "device", tmp_path / "host", 3)
    assert gpu.came
    assert looks.after_updates == [0, 0]
    assert looks.gradients == 0, "they make room for averages"
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "final").rglob("*.safetensors")}
        for name in ("device", "host")
    )
    assert one == other
