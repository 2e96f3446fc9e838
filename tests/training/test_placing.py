"""offload=auto: parts visit the GPU only where all would not fit; decided once, and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from medium import short  # pyright: ignore[reportMissingImports] (tests/plan)
from runs import assert_same_run, run, small

import dgpo.plan
from dgpo import Config, UserError, load_model
from dgpo.config import load_yaml
from dgpo.plan.estimates import Estimate, estimate
from dgpo.plan.fitting import GIB, chosen_offload, needs
from dgpo.training import placing
from dgpo.training.dry_run import dry_run
from dgpo.training.geometry import geometry
from dgpo.training.placing import with_offload

CPU = torch.device("cpu")
NAME = "a pretended GPU"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the device have so many bytes of its own."""
    return lambda size: monkeypatch.setattr(placing, "gpu_memory", lambda device: (size, NAME))


def needed(config: Config) -> int:
    """Bytes that a GPU must have for all parts at once."""
    return needs(estimate(replace(config, offload="none"), 1, False, "one bird"))


def test_the_figures_decide_and_are_told(
    tiny_folder: Path, tmp_path: Path, pretend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tiny_folder, tmp_path / "run", offload="auto", dtype="fp32")
    size = needed(config)
    for available, offload, verb in ((size, "none", "take"), (size - 1, "parts", "would take")):
        pretend(available)
        assert with_offload(config, CPU, config.prompts) == replace(config, offload=offload)
        out = " ".join(capsys.readouterr().out.split())
        figures = f"{size / GIB:.1f} GiB, of {NAME}'s {available / GIB:.1f} GiB"
        assert f"offload {offload}, for all parts at once {verb} {figures}" in out
    given = replace(config, offload="parts")
    assert with_offload(given, CPU) is given


def test_on_a_cpu_it_is_none(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tiny_folder, tmp_path / "run", offload="auto")
    assert with_offload(config, CPU).offload == "none"
    assert "offload none: on cpu there is no other memory" in capsys.readouterr().out
    dgpo.sample(tiny_folder, config, prompts=["a cup"], images=1)


def test_what_cannot_be_counted_takes_parts_and_shared_networks_none(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tiny_folder, tmp_path / "run", offload="auto")
    unknown = Estimate(config, geometry(config, 1), on_cpu=False, prompt="", unknown="no files")
    assert chosen_offload(unknown, GIB, NAME)[0] == "parts"
    assert "is not known (no files)" in chosen_offload(unknown, GIB, NAME)[1]
    shared = replace(config, shard="full")
    assert chosen_offload(replace(unknown, config=shared), GIB, NAME)[0] == "none"


@pytest.mark.slow
def test_a_run_keeps_what_it_began_with(tiny_folder: Path, tmp_path: Path, pretend: Any) -> None:
    """And parts, where they visit, change no bit."""
    whole = small(tiny_folder, tmp_path / "whole", offload="auto")
    run(whole)
    assert load_yaml(tmp_path / "whole" / "config.yaml").offload == "none"
    pretend(GIB)  # which the allowance for CUDA alone takes
    parts = replace(whole, out=str(tmp_path / "parts"))
    run(replace(parts, iterations=2))
    assert load_yaml(tmp_path / "parts" / "config.yaml").offload == "parts"
    pretend(100 * GIB)
    run(parts, resume=True)
    assert load_yaml(tmp_path / "parts" / "config.yaml").offload == "parts"
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 3)
    run(replace(parts, offload="none"), resume=True)
    assert load_yaml(tmp_path / "parts" / "config.yaml").offload == "none"


def test_a_given_model_stays_where_it_is(tiny_folder: Path, tmp_path: Path, pretend: Any) -> None:
    pretend(GIB)
    config = small(tiny_folder, tmp_path / "run", offload="auto", iterations=1)
    run(config, model=load_model(tiny_folder, device="cpu", lora=config.lora))
    assert load_yaml(tmp_path / "run" / "config.yaml").offload == "none"
    with pytest.raises(UserError, match="offload='auto' is unknown"):
        load_model(tiny_folder, offload="auto")  # pyright: ignore[reportArgumentType]


def test_files_of_a_hub_id_are_there_before_they_are_counted(
    tiny_folder: Path, tmp_path: Path, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    pretend(GIB)
    monkeypatch.setattr(placing, "read_index", lambda source: asked.append(f"index {source}") or {})
    monkeypatch.setattr(placing, "fetched", lambda source, index: asked.append(f"files {source}"))
    monkeypatch.setattr("dgpo.plan.estimates.find", lambda model: asked.append(f"counted {model}") or tiny_folder)
    config = small(Path("owner/name"), tmp_path / "run", offload="auto")
    assert with_offload(config, CPU).offload == "parts"
    assert asked == ["index owner/name", "files owner/name", "counted owner/name"]


@pytest.mark.slow
def test_a_dry_run_decides_as_the_run_would(
    tiny_folder: Path, tmp_path: Path, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tiny_folder, tmp_path / "run", offload="auto", group_size=5, rewards={"runs:colour": 1.0})
    counted: list[Config] = []

    def estimated(config: Config, *others: Any) -> Estimate:
        counted.append(config)
        return estimate(config, *others)

    monkeypatch.setattr("dgpo.plan.estimates.estimate", estimated)
    pretend(GIB)
    dry_run(config)
    assert [own.group_size for own in counted] == [5]


@pytest.mark.slow
def test_the_plan_says_what_a_run_would_take(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short(tiny_folder, tmp_path / "run", rewards={"crispness": 1.0}, offload="auto")
    dgpo.plan.plan(config, "H100")
    out = capsys.readouterr().out
    assert "offload none, for all parts at once take 1.0 GiB, of H100's 80.0 GiB" in out
    assert "on host or GPU" not in out
    monkeypatch.setattr("dgpo.plan.room", lambda gpu, on_cpu: (GIB, NAME))
    dgpo.plan.plan(config, "H100")
    out = capsys.readouterr().out
    assert f"offload parts, for all parts at once would take 1.0 GiB, of {NAME}'s 1.0 GiB" in out
    assert "held, on host or GPU" in out
    dgpo.plan.plan(config)
    assert "offload" not in capsys.readouterr().out
