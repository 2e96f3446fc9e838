from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_qwen_image import LIGHTNING, STRETCHED, tiny_qwen_image

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.qwen_image import QwenImage
from dgpo.models.rows import Rows

T = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved tiny pipeline with each kind of scheduler."""
    base = tmp_path_factory.mktemp("qwen")
    tiny_qwen_image(scheduler=STRETCHED).save_pretrained(base / "base")
    tiny_qwen_image(scheduler=LIGHTNING).save_pretrained(base / "lightning")
    return base


@pytest.fixture(scope="module")
def load(folders):
    """load_model on a tiny pipeline, with settings."""
    return lambda kind="base", **settings: load_model(folders / kind, **{"device": "cpu", "resolution": 32, **settings})


@pytest.fixture(scope="module")
def model(load):
    """One that no test changes."""
    return load()


@pytest.fixture(scope="module")
def stock(folders):
    """The same as diffusers alone loads it, changed by no test."""
    return stock_pipeline(folders / "base")


def stock_pipeline(folder):
    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_images(stock: Any, noise, true_cfg_scale=1.0) -> Any:
    """The stock call on the same noise, which diffusers packs itself."""
    n, channels, height, width = noise.shape
    return stock(
        prompt=PROMPTS,
        negative_prompt=[""] * n if true_cfg_scale > 1 else None,
        true_cfg_scale=true_cfg_scale,
        latents=stock._pack_latents(noise, n, channels, height, width),
        height=4 * height,
        width=4 * width,
        num_inference_steps=3,
        output_type="pt",
    ).images


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 48])
def test_the_few_step_scheduler_draws_the_stock_pictures(folders, load, resolution):
    model, stock = load("lightning", resolution=resolution), stock_pipeline(folders / "lightning")
    noise = model.init_noise(generators())
    for guidance_scale in (1.0, 4.5):
        expected = stock_images(stock, noise, guidance_scale)
        ours = our_images(model, noise, 3, guidance_scale, PROMPTS)
        assert_same_pictures(ours, expected, (3, 3, resolution, resolution))
    torch.testing.assert_close(model.scheduler_sigmas(3), stock.scheduler.sigmas, rtol=1e-6, atol=0)


@torch.no_grad()
def test_all_that_the_network_is_told_matters(model):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    v = model.velocity(x, T, cond)
    others = {
        "prompt": model.velocity(x, T, model.encode(PROMPTS[::-1])),
        "t": model.velocity(x, T - 0.05, cond),
        "guidance": model.velocity(x, T, cond, 4.5),
        "place": model.velocity(x.flip(3), T, cond).flip(3),
        "mask": model.velocity(x, T, Rows({**cond.tensors, "mask": torch.ones_like(cond.tensors["mask"])})),
    }
    for name, other in others.items():
        assert (other - v)[:2].abs().mean() > 0.02, name
    torch.testing.assert_close(others["mask"][2], v[2], rtol=1e-4, atol=1e-4, msg="the longest prompt has no padding")


@torch.no_grad()
def test_padding_is_not_read(model):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    mask = cond.tensors["mask"]
    assert mask.sum(1).tolist() == [11, 12, 20]  # each with five tokens of the template
    noisy = torch.where(mask[..., None], cond.tensors["prompt_embeds"], torch.randn(mask.shape)[..., None])
    other = Rows({"prompt_embeds": noisy, "mask": mask})
    torch.testing.assert_close(model.velocity(x, T, other), model.velocity(x, T, cond), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_of_one_length_need_no_mask_and_no_padding(model, monkeypatch):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    told = []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda **inputs: told.append(inputs) or forward(**inputs))
    model.velocity(x, T, cond[torch.tensor([0, 0, 0])])
    assert told[0]["encoder_hidden_states"].shape == (3, 11, 16)
    assert told[0]["encoder_hidden_states_mask"] is None


def test_the_template_is_that_of_the_real_tokenizer(stock):
    opening = stock.prompt_template_encode.partition("{}")[0]
    assert len(stock.tokenizer(opening).input_ids) == stock.prompt_template_encode_start_idx == 34
    assert QwenImage(stock).encode([""]).tensors["mask"].shape == (1, 5)


def test_guidance_keeps_the_norm_of_each_patch(model):
    uncond, cond = torch.randn(2, 3, 4, 8, 8)
    guided = model.family.guide(uncond, cond, 3.0)
    line = uncond + 3 * (cond - uncond)
    patch = (1, slice(None), slice(2, 4), slice(6, 8))
    torch.testing.assert_close(guided[patch], line[patch] * cond[patch].norm() / line[patch].norm())
    torch.testing.assert_close(model.family.guide(uncond, cond, 1.0), cond)


def test_grids(load, model, stock):
    # 32 pixels are 16 tokens, base_image_seq_len; 48 are 36, on the way to 64
    assert model.shift == pytest.approx(math.exp(0.5))
    assert QwenImage(stock, 48).shift == pytest.approx(math.exp(0.5 + 0.4 * 20 / 48))
    lightning = load("lightning")
    assert lightning.shift == pytest.approx(3.0)
    assert torch.equal(lightning.sigmas(4), flow_sigmas(4, lightning.shift))
    grid, even = model.sigmas(10), flow_sigmas(10, math.exp(0.5))
    assert grid[-2:].tolist() == pytest.approx([0.02, 0.0])
    stretched = 1 - (1 - even[:-1].double()) * 0.98 / (1 - even[-2].item())
    torch.testing.assert_close(grid[:-1].double(), stretched, rtol=0, atol=2e-7)
    assert torch.equal(model.sigmas(1), flow_sigmas(1, math.exp(0.5)))
    # stretched, the scheduler's grid and ours are one but for their beginning, 1 or just below
    torch.testing.assert_close(grid, model.scheduler_sigmas(10), rtol=0, atol=2e-3)


@torch.no_grad()
def test_each_channel_of_the_latents_has_its_own_scale(model, stock):
    images = torch.rand(3, 3, 32, 32)
    encoded = stock.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(model.encode_images(images)[:, 0], (encoded[:, 0, 0] + 0.5) / 2.0)


def test_a_latent_space_of_another_scale_is_another(load, model):
    space, other = model.latent_space, load()
    assert space == other.latent_space
    other.pipeline.vae.register_to_config(latents_std=[1.0] * 4)
    assert space != other.latent_space


def test_defaults_are_those_of_the_stock_call(stock):
    assert QwenImage(stock).latent_shape == (4, 128, 128)
    assert QwenImage(stock).max_sequence_length == 512
    assert QwenImage(stock, max_sequence_length=7).encode(PROMPTS).tensors["mask"].shape == (3, 7)


def test_a_network_that_wants_to_be_told_its_guidance_is_refused_because_diffusers_cannot_run_it():
    pipeline = tiny_qwen_image()
    inputs = {"img_shapes": [[(1, 4, 4)]], "timestep": T[:1], "guidance": T[:1]}
    with pytest.raises(TypeError, match="positional arguments"):
        pipeline.transformer(torch.randn(1, 16, 16), torch.randn(1, 5, 16), **inputs)
    pipeline.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(UserError, match="guidance_embeds=true"):
        QwenImage(pipeline)
