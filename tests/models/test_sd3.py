from __future__ import annotations

import pytest
import torch
from parity import PROMPTS, assert_same_pictures, generators, our_images
from torch import nn

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models.sd3 import SD3


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [None, 96])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_our_walk_on_the_scheduler_grid_draws_the_stock_pictures(load, stock, resolution, guidance_scale):
    model = load(resolution=resolution)
    noise = model.init_noise(generators())
    expected = stock(
        prompt=PROMPTS,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        height=resolution,
        width=resolution,
        max_sequence_length=0,
        output_type="pt",
    ).images
    side = resolution or 64
    assert_same_pictures(our_images(model, noise, 4, guidance_scale, PROMPTS), expected, (3, 3, side, side))


def test_guidance_is_the_line_through_the_unconditional_velocity(load):
    model = load()
    x, t, cond = model.init_noise(generators()), torch.tensor([0.9, 0.5, 0.2]), model.encode(PROMPTS)
    with torch.no_grad():
        v_cond = model.velocity(x, t, cond)
        v_uncond = model.velocity(x, t, model.encode([""] * 3))
        guided = {scale: model.velocity(x, t, cond, scale) for scale in (1.0, 1.5, 3.0)}
    assert (v_cond - v_uncond).abs().max() > 0.1
    for scale, v in guided.items():
        torch.testing.assert_close(v, v_uncond + scale * (v_cond - v_uncond), rtol=1e-4, atol=1e-4)


def test_the_empty_prompt_is_encoded_once(load, monkeypatch):
    model = load()
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    calls = []
    encode = model.pipeline.encode_prompt
    monkeypatch.setattr(model.pipeline, "encode_prompt", lambda *a, **k: calls.append(a) or encode(*a, **k))
    for _ in range(2):
        model.velocity(x, torch.full((3,), 0.5), cond, 2.0)
    assert calls == [([""],)]


def test_rows_do_not_depend_on_their_batch(load):
    model = load()
    x, t, cond = model.init_noise(generators()), torch.tensor([0.9, 0.5, 0.2]), model.encode(PROMPTS)
    alone = model.velocity(x[1:2], t[1:2], model.encode(PROMPTS[1:2]), 2.0)
    torch.testing.assert_close(model.velocity(x, t, cond, 2.0)[1:2], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.init_noise(generators())[1:2], model.init_noise(generators()[1:2]))
    assert x.dtype == torch.float32
    assert x.shape == (3, *model.latent_shape) == (3, 4, 8, 8)


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


def test_no_gradient_reaches_encoders_or_decoder(load):
    model = load()
    cond = model.encode(PROMPTS)
    x = model.init_noise(generators()).requires_grad_()
    images = model.decode(x)
    assert not any(tensor.requires_grad for tensor in (cond.tensors["prompt_embeds"], cond.tensors["pooled"], images))
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load, finetune):
    exact, rounded = load(finetune=finetune), load(finetune=finetune, dtype="bf16")
    x, t = exact.init_noise(generators()), torch.tensor([0.9, 0.5, 0.2])
    v = rounded.velocity(x, t, rounded.encode(PROMPTS), 2.0)
    v.square().mean().backward()
    assert v.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in rounded.weights.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in rounded.weights.parameters())
    frozen = rounded.network.context_embedder.weight
    assert frozen.dtype == (torch.float32 if finetune == "full" else torch.bfloat16)
    assert rounded.decode(x).dtype == rounded.pipeline.vae.dtype == torch.float32
    error = (v - exact.velocity(x, t, exact.encode(PROMPTS), 2.0)).abs().mean()
    assert 0 < error < 0.1 * v.abs().mean()


@pytest.mark.parametrize("resolution", [0, 72, 144])
def test_a_resolution_that_does_not_fit_is_refused(load, resolution):
    with pytest.raises(UserError, match="multiples of 16 pixels up to 128"):
        load(resolution=resolution)
