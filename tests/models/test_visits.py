"""Frozen parts visit the device one after another: their order, what is there at once, and what is drawn."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import PROMPTS, generators, our_images
from torch import Tensor

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.models import visits


class Device:
    """Stands in for a GPU: copies that are made for it, for as long as they live, and the order of those parts."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.peak, self.came = 0, list[int]()

    def copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        copy = tensor.clone()
        self.alive[copy.data_ptr()] = copy.nbytes
        weakref.finalize(copy.untyped_storage(), self.alive.pop, copy.data_ptr())
        self.came.append(copy.nbytes)
        self.peak = max(self.peak, sum(self.alive.values()))
        return copy


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(visits, "copied", device.copied)
    return device


def frozen_bytes(*parts: Any) -> int:
    named = [item for part in parts for item in (*part.named_parameters(), *part.named_buffers())]
    return sum(t.nbytes for name, t in named if "lora_" not in name)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_pictures_are_the_same_and_no_two_parts_are_there_at_once(
    load: Callable[..., Any], gpu: Device, finetune: str
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


def test_a_step_between_visits_is_the_step_without_them(load: Callable[..., Any], gpu: Device) -> None:
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


def test_encoders_that_are_let_go_leave_nothing(load: Callable[..., Any], gpu: Device) -> None:
    model = load(offload="parts", encoders_first=True)
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    model.free_encoders()
    assert not gpu.alive
    with torch.no_grad():
        model.velocity(x, torch.full((3,), 0.5), cond, 2.0)
    assert sum(gpu.alive.values()) == frozen_bytes(model.pipeline.transformer)


def test_what_cannot_visit_is_refused() -> None:
    with pytest.raises(UserError, match=r"offload='parts' moves the network .* shard='full' keeps"):
        Config(offload="parts", shard="full")
