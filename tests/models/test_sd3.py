from __future__ import annotations

import pytest
import torch
from parity import PROMPTS
from torch import nn

from dgpo.core.solvers import flow_sigmas
from dgpo.models.sd3 import SD3


def test_zero_tokens_stand_in_for_t5_only_when_asked_for(load, stock):
    assert load().encode(PROMPTS).tensors["prompt_embeds"].shape == (3, 16, 32)
    padded = load(max_sequence_length=5).encode(PROMPTS).tensors["prompt_embeds"]
    assert padded.shape == (3, 21, 32)
    assert not padded[:, 16:].any()
    stock.text_encoder_3 = nn.Identity()
    assert SD3(stock).max_sequence_length == 256


def test_grids(load):
    model = load()
    assert torch.equal(model.sigmas(10), flow_sigmas(10, 3.0))
    assert torch.equal(load(shift=1.5).sigmas(10), flow_sigmas(10, 1.5))
    model.pipeline.scheduler.set_timesteps(7)
    assert torch.equal(model.scheduler_sigmas(7), model.pipeline.scheduler.sigmas)
    model.scheduler_sigmas(3)
    assert len(model.pipeline.scheduler.sigmas) == 8, "the pipeline's own scheduler is left alone"


def test_asking_for_the_device_walks_over_no_module(load, monkeypatch):
    """Every velocity asks several times; diffusers' own property looks at all modules each time."""
    model = load()
    place = model.network.device
    monkeypatch.setattr(torch.nn.Module, "modules", lambda *_: pytest.fail("walks over all modules"))
    assert model.device == place
