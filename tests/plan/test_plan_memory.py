"""What the plan says of memory is what a run then takes, by the same count of live tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from medium import measured_peak, save_medium, short  # pyright: ignore[reportMissingImports] (beside this file)

from dgpo import DGPO, Config, FlowGRPO, Optimizer, Sampling
from dgpo.plan.estimates import Estimate, estimate
from dgpo.plan.fitting import GIB
from dgpo.plan.memory import Held, held, phases
from dgpo.plan.meta import Count
from dgpo.plan.page import lines
from dgpo.plan.runs import Runs
from dgpo.plan.skeleton import skeleton
from dgpo.run import checkpoint
from dgpo.training.geometry import geometry
from dgpo.training.saving import saved_tensors
from dgpo.training.setup import load


def planned(config: Config) -> Estimate:
    found = estimate(config, 1, True, "a red cat")
    assert not found.unknown
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"finetune": "full", "dtype": "bf16", "gradient_checkpointing": True},
        {
            "free_text_encoders": True,
            "vae_slicing": True,
            "micro_batch_size": 2,
            "algorithm": FlowGRPO(),
            "sampling": Sampling(num_inference_steps=4, guidance_scale=1.0),
        },
        {"vae_slicing": True, "vae_dtype": "bf16", "micro_batch_size": 2},
    ],
)
def test_a_tiny_runs_peak_is_foreseen(changes: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    # two iterations, for the loop holds a rollout until it has the next
    config = short(tiny_folder, tmp_path / "run", iterations=2, **changes)
    assert planned(config).peak == pytest.approx(measured_peak(config), rel=0.1)


@pytest.mark.slow
def test_a_medium_runs_peak_is_foreseen(tmp_path: Path) -> None:
    config = short(save_medium(tmp_path / "model"), tmp_path / "run")
    found = planned(config)
    assert found.held is not None
    assert found.phases["updating"] > 1.2 * found.held.total
    assert found.peak == found.phases["updating"] == pytest.approx(measured_peak(config), rel=0.05)


@pytest.mark.slow
def test_each_saving_saves_where_it_says(tiny_folder: Path, tmp_path: Path) -> None:
    def planned_phases(**changes: Any) -> dict[str, int]:
        return planned(short(tiny_folder, tmp_path, **changes)).phases

    usual = planned_phases()
    assert usual.keys() == {"encoding", "sampling", "decoding", "updating"}
    saving = planned_phases(
        gradient_checkpointing=True,
        vae_slicing=True,
        free_text_encoders=True,
        sampling=Sampling(num_inference_steps=2, guidance_scale=1.0),
    )
    assert saving["updating"] < 0.95 * usual["updating"]
    assert saving["decoding"] < 0.5 * usual["decoding"]
    assert saving["sampling"] < 0.9 * usual["sampling"]
    assert saving["encoding"] < usual["encoding"]  # there are no gradients and moments yet
    rounded = planned_phases(vae_dtype="bf16")
    assert rounded["decoding"] < 0.8 * usual["decoding"]
    assert rounded["updating"] < usual["updating"]


@pytest.mark.slow
def test_rollouts_of_another_size_are_counted_at_it_and_evaluations_at_their_own(
    tiny_folder: Path, tmp_path: Path
) -> None:
    half = Sampling(num_inference_steps=2, guidance_scale=2.0, resolution=32)
    own, small = short(tiny_folder, tmp_path), planned(short(tiny_folder, tmp_path, resolution=32))
    found = planned(replace(own, sampling=half))
    assert found.phases == small.phases
    assert found.work == small.work
    assert found.held == small.held
    assert any("at 32 pixels a side; evaluations" in line for line in lines(found, [], None))
    evaluated = planned(replace(own, sampling=half, eval_every=1, eval_prompts={"seen": "prompts:trained"}))
    assert evaluated.work == small.work
    for name, whole in planned(own).phases.items():
        least, most = small.phases[name], whole
        is_larger = name in ("sampling", "decoding")  # which evaluations do at 64 pixels
        assert least < evaluated.phases[name] < most if is_larger else evaluated.phases[name] == least < most


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1])
def test_the_peak_of_a_run_with_two_sizes_is_foreseen(steps: int, tiny_folder: Path, tmp_path: Path) -> None:
    half = Sampling(num_inference_steps=2, guidance_scale=2.0, resolution=32)
    sets = {"eval_prompts": {"seen": "prompts:trained"}, "eval_images_per_prompt": 3, "num_samples": 1}
    config = short(tiny_folder, tmp_path / "run", iterations=2, sampling=half, eval_every=steps, **sets)
    assert planned(config).peak == pytest.approx(measured_peak(config), rel=0.1)


def test_a_size_of_rollouts_that_does_not_fit_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    found = estimate(short(tiny_folder, tmp_path, sampling=Sampling(resolution=40)), 1, True, "a red cat")
    assert found.unknown.startswith("sampling.resolution: resolution=40 does not fit this model")
    assert found.held is not None
    assert not found.phases


def test_parts_are_counted_by_the_bytes_of_a_parameter(tiny_folder: Path, tmp_path: Path) -> None:
    def parts(**changes: Any) -> dict[str, int]:
        config = short(tiny_folder, tmp_path, **changes)
        model = skeleton(config, tiny_folder)
        trained = sum(p.numel() for p in model.weights.parameters())
        found = held(model, config).parts
        assert found["trained weights, fp32"] == found["gradients"] == found["their average ema"] == 4 * trained
        return found

    usual = parts()
    assert usual["optimizer moments"] == 2 * usual["gradients"]
    small = parts(optimizer=Optimizer(name="adamw8bit"), dtype="bf16", free_text_encoders=True)
    assert small["optimizer moments"] == small["gradients"] // 2
    assert small["transformer, frozen"] == usual["transformer, frozen"] // 2
    assert small["vae"] == usual["vae"]
    assert usual.keys() - small.keys() == {"text encoder", "text encoder 2"}


def test_the_reference_of_full_training_is_halved_by_bf16(tiny_folder: Path, tmp_path: Path) -> None:
    config = short(tiny_folder, tmp_path, finetune="full")
    whole, half = (held(skeleton(c, tiny_folder), c).parts for c in (config, replace(config, dtype="bf16")))
    real: Any = load(replace(config, dtype="bf16"), torch.device("cpu"))
    layers = [m for m in real.network.modules() if type(m) in (torch.nn.Linear, torch.nn.Conv2d)]
    rounded = sum(p.nbytes for layer in layers for p in layer.parameters())
    assert whole["their frozen copy ref"] - half["their frozen copy ref"] == rounded // 2
    assert half["their frozen copy ref"] == sum(t.nbytes for t in real.weights.tensors("ref").values())
    assert whole["their average ema"] == half["their average ema"]


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_quantised_base_is_counted_as_it_is_loaded(bits: Any, tiny_folder: Path, tmp_path: Path) -> None:
    config = short(tiny_folder, tmp_path, base_precision=bits)
    real: Any = load(config, torch.device("cpu"))
    usual, found = planned(replace(config, base_precision="auto")), planned(config)
    assert found.parts == usual.parts
    assert usual.held is not None
    assert found.held is not None
    assert found.held.parts == held(real, config).parts
    assert found.held.parts["transformer, frozen"] < usual.held.parts["transformer, frozen"]
    assert found.held.trained == usual.held.trained


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_quantised_runs_peak_is_foreseen(checkpointing: bool, tmp_path: Path) -> None:
    config = short(save_medium(tmp_path / "model"), tmp_path / "run", base_precision="nf4")
    config = replace(config, gradient_checkpointing=checkpointing)
    assert planned(config).peak == pytest.approx(measured_peak(config), rel=0.05)


def test_processes_share_images(tmp_path: Path) -> None:
    config = short(Path("tiny-sd3"), tmp_path, num_groups=4)
    found = [geometry(config, processes) for processes in (1, 2, 5)]
    assert [(g.images, g.micro_batch, g.splits) for g in found] == [(12, 12, False), (6, 6, False), (3, 3, True)]
    cut = replace(config, micro_batch_size=7)  # two whole groups
    assert [geometry(cut, processes).micro_batch for processes in (1, 2, 5)] == [6, 6, 3]
    assert geometry(replace(config, micro_batch_size=2), 1).splits


def test_phases_by_hand(tiny_folder: Path, tmp_path: Path) -> None:
    """Latents of 1 KiB, conditions of 1 KiB, pictures of 48 KiB."""
    kib = 1024
    config = short(tiny_folder, tmp_path, num_groups=2, group_size=4, micro_batch_size=4)
    config = replace(config, sampling=replace(config.sampling, batch_size=2))
    own = Held({"all": 1000 * kib}, gradients=30 * kib, moments=60 * kib, trained=40 * kib, encoders=20 * kib)
    runs = Runs(kib, *(Count(peak=n * kib) for n in (7, 100, 200, 300)), by_group=None)
    model: Any = SimpleNamespace(latent_shape=(4, 8, 8), pipeline=SimpleNamespace(vae_scale_factor=8))
    found = phases(model, config, geometry(config, 1), runs, own, on_cpu=True)
    before = 1000 + 8 * (1 + 1 + 48)  # the last rollout of eight images
    assert found == {
        "encoding": (before + 7) * kib,
        "sampling": (before + 8 * 2 + 4 * 2 + 100) * kib,  # the new one's latents and conditions, four solver states
        "decoding": (before + 8 * 2 + max(6 * 48 + 200, 2 * 8 * 48)) * kib,
        # its rows that train and, at two points, x_t, target, ref and old
        "updating": (before + 8 * (1 + 1 + 48 + 2 * 4) + 300) * kib,
    }
    on_gpu = phases(model, config, geometry(config, 1), runs, own, on_cpu=False)
    assert on_gpu["updating"] == (1000 + 8 * 2 + 8 * (2 + 2 * 4) + 300) * kib
    first = replace(config, free_text_encoders=True)  # before anything else, and on a GPU before the frozen network
    on_cpu, on_gpu = (phases(model, first, geometry(first, 1), runs, own, on_cpu=where) for where in (True, False))
    assert on_cpu["encoding"] == (1000 - 30 - 60 + 20 + 7) * kib
    assert on_gpu["encoding"] == (40 + 20 + 7) * kib


def test_parts_that_visit_are_there_in_their_phase_only(tiny_folder: Path, tmp_path: Path) -> None:
    config = short(tiny_folder, tmp_path)
    runs = Runs(0, *(Count() for _ in range(4)), by_group=None)
    model: Any = SimpleNamespace(latent_shape=(0, 8, 8), pipeline=SimpleNamespace(vae_scale_factor=8))
    usual, visited = (held(skeleton(c, tiny_folder), c) for c in (config, replace(config, offload="parts")))
    assert visited.parts == usual.parts
    assert not usual.visitors
    network, vae, encoders = (visited.visitors[name] for name in ("network", "vae", "encoders"))
    assert (network, vae) == (visited.parts["transformer, frozen"], visited.parts["vae"])
    assert encoders == visited.encoders > 0

    def found(own: Held, on_cpu: bool) -> dict[str, int]:
        return phases(model, config, geometry(config, 1), runs, own, on_cpu)

    here = {"encoding": encoders, "sampling": network, "decoding": vae, "updating": network}
    gone = {name: network + vae + encoders - size for name, size in here.items()}
    assert found(visited, on_cpu=False) == {
        name: size - gone[name] for name, size in found(usual, on_cpu=False).items()
    }
    assert found(visited, on_cpu=True) == found(usual, on_cpu=True)


def test_averages_on_the_host_are_there_to_draw_and_to_answer(tiny_folder: Path, tmp_path: Path) -> None:
    """A network of 10 bytes, with gradients, moments and both averages."""
    usual = Held({"all": 100}, gradients=10, moments=20, trained=30, encoders=4)
    away = replace(usual, averages=(10, 10))
    model: Any = SimpleNamespace(latent_shape=(0, 8, 8), pipeline=SimpleNamespace(vae_scale_factor=8))

    def saved(on_cpu: bool = False, answering: int = 0, **changes: Any) -> dict[str, int]:
        config = short(
            tiny_folder,
            tmp_path,
            **{"algorithm": DGPO(t_sampling="uniform", sampling_switch=10, old_decay_rate=0.1), **changes},
        )
        runs = Runs(0, *(Count() for _ in range(3)), Count(peak=12), None, old=Count(peak=answering))
        g = geometry(config, 1)
        assert g.old_updates
        before, after = (phases(model, config, g, runs, own, on_cpu) for own in (usual, away))
        return {name: before[name] - after[name] for name in before}

    both, gradients = 20, 10
    everywhere = {"encoding": both + gradients, "decoding": both + gradients}
    drawn = {**everywhere, "sampling": both + gradients - 10}
    assert saved() == {**drawn, "updating": both}, "rollouts by `old`"
    assert saved(answering=11)["updating"] == both
    assert saved(answering=15)["updating"] == both - 3, "its answers take more than a backward, but no gradients"
    never = DGPO(t_sampling="uniform", sampling_switch=10**6, old_decay_rate=0.1)
    assert saved(algorithm=never) == {**everywhere, "sampling": both + gradients, "updating": both}
    assert saved(algorithm=never, eval_every=1, eval_prompts={"one": "one.txt"}) == {**drawn, "updating": both}
    assert saved(free_text_encoders=True)["encoding"] == both
    assert not any(saved(on_cpu=True).values()), "where the host is the device"


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_averages_on_the_host_are_counted(tiny_folder: Path, tmp_path: Path, finetune: Any) -> None:
    config = short(tiny_folder, tmp_path, finetune=finetune, averages="host")
    usual, away = (estimate(replace(config, averages=where), 1, False, "a red cat") for where in ("device", "host"))
    assert not away.unknown
    assert usual.held is not None
    assert away.held is not None
    size = away.held.parts["their average ema"]
    assert away.held.parts == usual.held.parts
    assert usual.held.on_host == 0
    assert away.held.on_host == size * len(away.held.averages) > 0
    assert usual.phases["decoding"] - away.phases["decoding"] == away.held.on_host + size
    shared = held(skeleton(config, tiny_folder), replace(config, shard="full"), 2)
    assert bool(shared.averages) == (finetune == "full"), "those of a shared LoRA stay"
    assert f"{'of it in host memory':<28}{away.held.on_host / GIB:>18.3f}" in "\n".join(lines(away, [], None))
    assert not any("host" in line for line in lines(usual, [], None))


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_the_copy_that_a_checkpoint_is_written_from_is_counted(
    tiny_folder: Path, tmp_path: Path, finetune: Any
) -> None:
    config = short(tiny_folder, tmp_path / "run", finetune=finetune, checkpoint_every=1)
    usual, behind = (
        estimate(replace(config, background_saving=where), 1, True, "a red cat") for where in (False, True)
    )
    assert behind.held is not None
    size = behind.held.copied
    assert behind.phases == {name: peak + size for name, peak in usual.phases.items()}
    first = replace(config, background_saving=True, free_text_encoders=True)
    before, after = (estimate(replace(first, background_saving=b), 1, True, "a red cat").phases for b in (False, True))
    assert after == {name: peak + size * (name != "encoding") for name, peak in before.items()}
    assert f"  {'in host memory, for saving':<28}{size / GIB:>18.3f}" in [*lines(behind, [], None)]
    assert not any("for saving" in line for line in lines(usual, [], None))
    run: Any = load(config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(run.weights.parameters())
    for parameter in run.weights.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = checkpoint.copied(saved_tensors(run, optimizer))
    steps = 4 * len(run.weights.parameters())
    assert size == sum(t.nbytes for group in tensors.values() for t in group.values()) - steps


def test_measuring_the_noise_scale_keeps_a_second_gradient(tiny_folder: Path, tmp_path: Path) -> None:
    def updating(every: int, by_group: int | None) -> int:
        config = short(tiny_folder, tmp_path, noise_scale_every=every)
        own = Held({}, gradients=50, moments=100, trained=0, encoders=0)
        runs = Runs(0, Count(), Count(), Count(), Count(peak=300), by_group and Count(peak=by_group))
        model: Any = SimpleNamespace(latent_shape=(0, 8, 8), pipeline=SimpleNamespace(vae_scale_factor=8))
        return phases(model, config, geometry(config, 1), runs, own, on_cpu=False)["updating"]

    assert updating(0, None) == 300
    assert updating(5, 200) == 300
    assert updating(5, 290) == 340
    assert updating(1, 100) == 150  # always one group at a time


@pytest.mark.slow
def test_a_peak_of_drawing_in_plain_bf16_is_foreseen(tmp_path: Path) -> None:
    """One image is trained and decoded at a time, so that the rollout's forwards are the peak."""
    sampling = Sampling(num_inference_steps=2, guidance_scale=2.0, batch_size=6)
    savings = {"micro_batch_size": 1, "vae_slicing": True, "gradient_checkpointing": True}
    config = short(save_medium(tmp_path / "model"), tmp_path / "run", dtype="bf16", sampling=sampling, **savings)
    found = planned(config)
    assert found.phases["sampling"] > 0.95 * found.phases[found.largest]
    assert found.peak == pytest.approx(measured_peak(config), rel=0.05)


def test_drawing_in_plain_bf16_moves_less_than_a_training_forward(tiny_folder: Path, tmp_path: Path) -> None:
    def moved(**changes: Any) -> tuple[float, float]:
        """Bytes of the plan on CUDA: a solver step of a picture, and a frozen forward of an update."""
        config = short(tiny_folder, tmp_path, sampling=Sampling(num_inference_steps=2, guidance_scale=1.0), **changes)
        found = estimate(config, 1, False, "a red cat")
        drawn, frozen = found.geometry.drawn * 2, found.geometry.trained * found.geometry.points * 2  # ref and old
        return found.work["sampling"].moved / drawn, found.work["frozen forwards"].moved / frozen

    drawing, frozen = moved(dtype="bf16")
    assert drawing < 0.8 * frozen
    drawing, frozen = moved(dtype="fp32")
    assert drawing == pytest.approx(frozen)
