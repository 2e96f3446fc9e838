"""Which parts are on the device when: with `encoders_first` the text encoders, and what is large only after them."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from parity import PROMPTS
from tiny_flux import tiny_flux
from torch import nn

from dgpo.models.flux import Flux
from dgpo.models.pipeline import PipelineModel
from dgpo.models.weights import WeightSets

GPU = torch.device("cuda", 0)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, torch.device]]:
    """What is sent to the GPU, in order; nothing is moved, for there is none."""
    sent: list[tuple[Any, torch.device]] = []
    to = nn.Module.to

    def record(module: nn.Module, *where: Any, **settings: Any) -> nn.Module:
        if where != (GPU,):  # PEFT's adapters to their layers
            return to(module, *where, **settings)
        sent.append((module, GPU))
        return module

    monkeypatch.setattr(nn.Module, "to", record)
    monkeypatch.setattr(WeightSets, "to", lambda sets, name, device: sent.append((name, device)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: sent.append(("emptied", GPU)))
    return sent


def test_text_encoders_go_first_and_the_network_after_they_are_freed(
    moves: list[tuple[Any, torch.device]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_flux()
    encoders, network, vae = {pipeline.text_encoder, pipeline.text_encoder_2}, pipeline.transformer, pipeline.vae
    model = PipelineModel(pipeline, Flux(pipeline, 32, 16), device=GPU, encoders_first=True)
    names = list(model.weights.names)
    assert {sent for sent, _ in moves[:2]} == encoders
    assert moves[2:] == [(name, GPU) for name in names], "and what trains, for the optimizer's state follows it"
    assert model.device == model.family.text_device == GPU

    alive, asked = [weakref.ref(encoder) for encoder in encoders], []
    rows = torch.zeros(1, 2)
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda _, device, **__: asked.append(device) or (rows[None], rows, None)
    )
    model.encode(PROMPTS)
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append([ref() for ref in alive]))
    del moves[:], encoders
    model.free_encoders()
    assert set(asked) == {GPU}
    assert freed == [[None, None]], "the encoders are gone when their memory is given back"
    assert {sent for sent, _ in moves} == {network, vae}


def test_without_it_all_go_at_once(moves: list[tuple[Any, torch.device]]) -> None:
    pipeline = tiny_flux()
    PipelineModel(pipeline, Flux(pipeline, 32, 16), device=GPU)
    assert [sent for sent, _ in moves] == [p for p in pipeline.components.values() if isinstance(p, nn.Module)]


def test_moved_weights_are_the_same_parameters(load: Any) -> None:
    """The optimizer is made, and on resume filled, before the encoders go."""
    model = load(encoders_first=True)
    before = [id(parameter) for parameter in model.weights.parameters()]
    model._place_rest()
    assert [id(parameter) for parameter in model.weights.parameters()] == before


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["velocity", "decode", "encode_images"])
def test_who_asks_the_network_with_its_encoders_gets_an_answer(load: Any, ask: str) -> None:
    """The same as without `encoders_first`: what waits is placed at the first call."""
    answers = []
    for first in (False, True):
        model = load(encoders_first=first)
        x, cond = model.init_noise([torch.Generator().manual_seed(0)]), model.encode(["a cat"])
        assert bool(model._waiting) is first
        given = {
            "velocity": (x, torch.tensor([0.5]), cond, 3.0),
            "decode": (x,),
            "encode_images": (torch.full((1, 3, 64, 64), 0.5),),
        }[ask]
        with torch.no_grad():
            answers.append(getattr(model, ask)(*given))
        assert not model._waiting
    assert torch.equal(*answers)
