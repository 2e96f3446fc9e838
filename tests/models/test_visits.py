"""Frozen parts visit the device one after another: their order, what is there at once, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpu
from parity import PROMPTS, generators, our_images
from torch import Tensor

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.models import visits

AVERAGES = ("old", "ema")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    device = FakeGpu()
    monkeypatch.setattr(visits, "copied", device.copied)
    return device


def frozen_bytes(*parts: Any) -> int:
    named = [item for part in parts for item in (*part.named_parameters(), *part.named_buffers())]
    return sum(t.nbytes for name, t in named if "lora_" not in name)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_pictures_are_the_same_and_no_two_parts_are_there_at_once(
    load: Callable[..., Any], gpu: FakeGpu, finetune: str
) -> None:
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators()])
    expected = our_images(load(finetune=finetune), noise, 3, 3.0, PROMPTS)
    model = load(finetune=finetune, offload="parts")
    pipeline = model.pipeline
    encoders = frozen_bytes(pipeline.text_encoder, pipeline.text_encoder_2)
    vae = frozen_bytes(pipeline.vae)
    network = frozen_bytes(pipeline.transformer)
    if finetune == "full":  # which is on the device all the time, but for its buffers
        network = sum(t.nbytes for t in pipeline.transformer.buffers())
    assert not gpu.came, "nothing is there before it is asked"
    for _ in range(2):
        assert torch.equal(our_images(model, noise, 3, 3.0, PROMPTS), expected)
    assert gpu.peak == max(encoders, network, vae)
    assert sum(gpu.came) == 2 * (encoders + network + vae), "each comes once for each of the two"


def test_a_step_between_visits_is_the_step_without_them(load: Callable[..., Any], gpu: FakeGpu) -> None:
    """The network leaves between forward passes, and what trains stays where the optimizer has it."""
    after = []
    for offload in ("none", "parts"):
        model = load(offload=offload)
        x = model.init_noise(generators())
        optimizer = torch.optim.AdamW(model.weights.parameters(), lr=0.1)
        for _ in range(2):
            model.velocity(x, torch.full((3,), 0.5), model.encode(PROMPTS), 2.0).pow(2).mean().backward()
            model.decode(x)
            optimizer.step()
        after.append([p.detach().clone() for p in model.weights.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*after))


def test_encoders_that_are_let_go_leave_nothing(load: Callable[..., Any], gpu: FakeGpu) -> None:
    model = load(offload="parts", encoders_first=True)
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    model.free_encoders()
    assert not gpu.alive
    with torch.no_grad():
        model.velocity(x, torch.full((3,), 0.5), cond, 2.0)
    assert sum(gpu.alive.values()) == frozen_bytes(model.pipeline.transformer)


@pytest.mark.parametrize(
    ("settings", "weights"), [({"offload": "parts"}, "policy"), ({"finetune": "full", "averages": "host"}, "ema")]
)
def test_what_found_no_room_comes_whole_the_next_time(
    settings: dict[str, Any], weights: str, load: Callable[..., Any], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved_apart(load(**settings))
    expected = answer(model, weights)
    x, t, cond = model.init_noise(generators()), torch.full((3,), 0.5), model.encode(PROMPTS)
    model.decode(x)

    def full(tensor: Tensor, device: torch.device) -> Tensor:
        if len(gpu.came) == before + 3:
            raise torch.OutOfMemoryError("the device is full")
        return gpu.copied(tensor, device)

    before = len(gpu.came)
    monkeypatch.setattr(visits, "copied", full)
    with pytest.raises(torch.OutOfMemoryError), torch.no_grad():
        model.velocity(x, t, cond, 2.0, weights)
    monkeypatch.setattr(visits, "copied", gpu.copied)
    before = len(gpu.came)
    with torch.no_grad():
        assert torch.equal(model.velocity(x, t, cond, 2.0, weights), expected)
    assert len(gpu.came) > before + 3, "what had come before the error comes again"


def moved_apart(model: Any) -> Any:
    """All sets differ, alike for every such model."""
    for seed, name in enumerate(("policy", *AVERAGES)):
        generator = torch.Generator().manual_seed(seed)
        own = model.weights.tensors(name)
        model.weights.load(name, {key: t + 0.05 * torch.randn(t.shape, generator=generator) for key, t in own.items()})
    return model


def answer(model: Any, name: str) -> Tensor:
    x = model.init_noise(generators())
    with torch.no_grad():
        return model.velocity(x, torch.full((3,), 0.5), model.encode(PROMPTS), 2.0, name)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_an_average_is_on_the_device_only_while_it_answers(
    load: Callable[..., Any], gpu: FakeGpu, finetune: str
) -> None:
    usual, model = (moved_apart(load(finetune=finetune, averages=where)) for where in ("device", "host"))
    size = sum(t.nbytes for t in model.weights.tensors("ema").values())
    at_home = {name: [t.data_ptr() for t in model.weights.tensors(name).values()] for name in AVERAGES}
    assert not gpu.came
    for name in ("policy", "ref", *AVERAGES, *AVERAGES, "policy"):
        assert torch.equal(answer(model, name), answer(usual, name)), name
        there = {p.data_ptr() for p in model.weights.own(name).values()} if name in AVERAGES else set()
        assert there == {*gpu.alive}, f"after {name}"
    assert gpu.peak == size, "one at a time"
    assert sum(gpu.came) == 4 * size
    for name in AVERAGES:
        assert [t.data_ptr() for t in model.weights.own(name).values()] == at_home[name]


def test_an_average_that_answers_again_does_not_come_again(load: Callable[..., Any], gpu: FakeGpu) -> None:
    """A solver's steps are blocks of their own; between two pictures the autoencoder has the device to itself."""
    model = load(finetune="full", averages="host")
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators()])
    cond, t = model.encode(PROMPTS), torch.full((3,), 0.5)
    with torch.no_grad():
        for _ in range(3):
            model.velocity(noise, t, cond, 2.0, "ema")
        assert len(gpu.came) == len(model.weights.own("ema"))
        model.decode(noise)
        assert not gpu.alive
        model.velocity(noise, t, cond, 2.0, "ema")
        model.encode(["another prompt"])
    assert not gpu.alive


def test_blocks_inside_each_other_have_their_own_average(load: Callable[..., Any], gpu: FakeGpu) -> None:
    model = moved_apart(load(finetune="full", averages="host"))
    expected = {name: answer(model, name) for name in AVERAGES}
    with model.weights.use("old"):
        for name in ("ema", "policy"):
            answer(model, name)
            assert {p.data_ptr() for p in model.weights.own("old").values()} == {*gpu.alive}
        assert torch.equal(answer(model, "old"), expected["old"])


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_an_average_on_the_host_follows_bit_for_bit(load: Callable[..., Any], gpu: FakeGpu, finetune: str) -> None:
    usual, model = (moved_apart(load(finetune=finetune, averages=where)) for where in ("device", "host"))
    largest = max(t.nbytes for t in model.weights.tensors("ema").values())
    answer(model, "ema")
    gpu.peak = 0
    for decay in (0.3, 0.9, 0.0):
        for name in AVERAGES:
            for each in (usual, model):
                each.weights.ema_update(name, decay)
            own, expected = (each.weights.tensors(name) for each in (model, usual))
            assert all(torch.equal(own[key], expected[key]) for key in expected), (name, decay)
    assert gpu.peak <= 2 * largest, "one tensor at a time, the last until the next is there"
    assert not gpu.alive


def test_what_is_loaded_or_exported_is_what_answers(load: Callable[..., Any], gpu: FakeGpu, tmp_path: Path) -> None:
    """Also where the set was on the device; and an export takes it from the host."""
    model, usual = load(finetune="full", averages="host"), moved_apart(load(finetune="full"))
    answer(model, "ema")
    model.weights.load("ema", usual.weights.tensors("ema"))
    assert torch.equal(answer(model, "ema"), answer(usual, "ema"))
    gpu.came.clear()
    for each, place in ((model, "host"), (usual, "device")):
        each.weights.export(tmp_path / place, "ema")
    assert not gpu.came
    files = sorted(path.relative_to(tmp_path / "host") for path in (tmp_path / "host").rglob("*") if path.is_file())
    assert len(files) == 2
    assert all((tmp_path / "host" / file).read_bytes() == (tmp_path / "device" / file).read_bytes() for file in files)


def test_adapters_that_come_with_the_network_go_back(load: Callable[..., Any], gpu: FakeGpu) -> None:
    """Where the network waits for the encoders, it is moved as a whole."""
    model = load(averages="host", encoders_first=True)
    at_home = [t.data_ptr() for t in model.weights.tensors("ema").values()]
    for parameter in model.weights.own("ema").values():
        parameter.data = parameter.data.clone()  # as moving the network to another device would
    model.encode(PROMPTS)
    model.free_encoders()
    assert [p.data_ptr() for p in model.weights.own("ema").values()] == at_home


def test_a_place_that_is_none_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"averages='hots' is unknown. Did you mean 'host'"):
        load(averages="hots")
    with pytest.raises(UserError, match="averages"):
        Config(averages="hots")  # pyright: ignore[reportArgumentType]


def test_what_cannot_visit_is_refused() -> None:
    with pytest.raises(UserError, match=r"offload='parts' moves the network .* shard='full' keeps"):
        Config(offload="parts", shard="full")
