from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_flux import tiny_flux

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.flux import Flux
from dgpo.models.grids import scheduler_shift
from dgpo.models.patches import pack, unpack

T = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved tiny pipeline of each kind."""
    base = tmp_path_factory.mktemp("flux")
    for kind in ("dev", "schnell"):
        tiny_flux(guidance_embeds=kind == "dev").save_pretrained(base / kind)
    return base


@pytest.fixture(scope="module")
def load(folders):
    """load_model on a tiny pipeline, with settings; T5 padded to 24 tokens instead of 512."""
    defaults = {"device": "cpu", "resolution": 32, "max_sequence_length": 24}
    return lambda kind="dev", **settings: load_model(folders / kind, **defaults | settings)


@pytest.fixture(scope="module")
def model(load):
    """One that no test changes, of the kind [dev]."""
    return load()


@pytest.fixture(scope="module")
def stock(folders):
    """The same as diffusers alone loads it, changed by no test."""
    return stock_pipeline(folders / "dev")


def stock_pipeline(folder):
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_images(stock: Any, noise, true_cfg_scale=1.0, **settings) -> Any:
    """The stock call on the same noise, which diffusers packs itself."""
    n, channels, height, width = noise.shape
    guided = {"negative_prompt": [""] * n, "true_cfg_scale": true_cfg_scale} if true_cfg_scale > 1 else {}
    return stock(
        prompt=PROMPTS,
        latents=stock._pack_latents(noise, n, channels, height, width),
        height=4 * height,
        width=4 * width,
        num_inference_steps=3,
        max_sequence_length=24,
        output_type="pt",
        **guided | settings,
    ).images


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 48])
def test_schnell_draws_the_stock_pictures(folders, load, resolution):
    model, stock = load("schnell", resolution=resolution), stock_pipeline(folders / "schnell")
    noise = model.init_noise(generators())
    for guidance_scale in (1.0, 4.5):
        expected = stock_images(stock, noise, guidance_scale)
        ours = our_images(model, noise, 3, guidance_scale, PROMPTS)
        assert_same_pictures(ours, expected, (3, 3, resolution, resolution))
    torch.testing.assert_close(model.scheduler_sigmas(3), stock.scheduler.sigmas, rtol=1e-6, atol=0)


@torch.no_grad()
def test_all_that_the_network_is_told_matters(model, monkeypatch):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    v = model.velocity(x, T, cond)
    others = {
        "prompt": model.velocity(x, T, model.encode(PROMPTS[::-1])),
        "t": model.velocity(x, T - 0.05, cond),
        "true guidance": model.velocity(x, T, cond, 4.5),
        "place": model.velocity(x.flip(3), T, cond).flip(3),
    }
    monkeypatch.setattr(model.family, "distilled_guidance", 1.0)
    others["distilled guidance"] = model.velocity(x, T, cond)
    monkeypatch.undo()
    monkeypatch.setattr(model.family, "max_sequence_length", 48)
    others["padding"] = model.velocity(x, T, model.encode(PROMPTS))
    for name, other in others.items():
        assert (other - v).abs().mean() > 0.02, name


def test_the_network_is_told_its_guidance_only_where_it_asks(load, model, stock):
    assert model.family.distilled_guidance == 3.5
    told = load(distilled_guidance=7.0)
    noise = told.init_noise(generators())
    expected = stock_images(stock, noise, guidance_scale=7.0)
    assert_same_pictures(our_images(told, noise, 3, 1.0, PROMPTS), expected, (3, 3, 32, 32))
    assert told.at_resolution(48).family.distilled_guidance == 7.0
    with pytest.raises(UserError, match="is not told its guidance"):
        load("schnell", distilled_guidance=3.5)


def test_packing_is_the_pipelines():
    latents = torch.randn(2, 4, 6, 10)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(tokens, 6), latents)


def test_grids(load, model, stock):
    # 32 pixels are 16 tokens, base_image_seq_len; 48 are 36, on the way to 64
    assert model.shift == pytest.approx(math.exp(0.5))
    assert Flux(stock, 48).shift == pytest.approx(math.exp(0.5 + 0.65 * 20 / 48))
    assert Flux(stock, 64).shift == pytest.approx(math.exp(1.15))
    assert torch.equal(model.sigmas(10), flow_sigmas(10, math.exp(0.5)))
    for settings, shift in (({"kind": "schnell"}, 1.0), ({"shift": 2.5}, 2.5)):
        assert torch.equal(load(**settings).sigmas(10), flow_sigmas(10, shift))
    real = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    assert scheduler_shift(real, (16, 128, 128)) == pytest.approx(math.exp(1.15))
    assert scheduler_shift({**real, "time_shift_type": "linear"}, (16, 128, 128)) == pytest.approx(1.15)


def test_defaults_are_those_of_the_stock_call(stock):
    assert Flux(stock).latent_shape == (4, 128, 128)
    assert Flux(stock).max_sequence_length == 512
