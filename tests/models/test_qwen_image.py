from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_qwen_image import LIGHTNING, STRETCHED, tiny_qwen_image

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import LoraConfig, load_model
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


def perturb(model):
    """`tensors` shares storage, so adding in place changes the network."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "lightning"])
@pytest.mark.parametrize("resolution", [32, 48])
def test_our_walk_on_the_scheduler_grid_draws_the_stock_pictures(folders, load, kind, resolution):
    model, stock = load(kind, resolution=resolution), stock_pipeline(folders / kind)
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
def test_rows_of_any_length_do_not_depend_on_their_batch(model):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    alone = [model.encode([prompt]) for prompt in PROMPTS]
    assert len({row.tensors["mask"].sum().item() for row in alone}) == 3
    joined = model.velocity(x, T, alone[0].cat(*alone[1:]), 2.0)
    single = torch.cat([model.velocity(x[i : i + 1], T[i : i + 1], alone[i], 2.0) for i in range(3)])
    for v in (joined, single):
        torch.testing.assert_close(v, model.velocity(x, T, cond, 2.0), rtol=1e-4, atol=1e-4)


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


def test_a_lora_is_read_by_stock_diffusers(folders, load, tmp_path):
    model, stock = load(lora=LoraConfig(rank=4, alpha=8)), stock_pipeline(folders / "base")
    noise = model.init_noise(generators())
    perturb(model)
    ours = our_images(model, noise, 3, 1.0, PROMPTS)
    assert (ours - stock_images(stock, noise)).abs().max() > 0.05
    model.weights.export(tmp_path, "policy")
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(ours, stock_images(stock, noise), rtol=0, atol=1e-5)


def test_a_fully_trained_network_is_read_by_stock_diffusers(folders, load, tmp_path):
    model, stock = load(finetune="full"), stock_pipeline(folders / "base")
    noise = model.init_noise(generators())
    perturb(model)
    model.weights.export(tmp_path, "policy")
    stock.transformer = QwenImageTransformer2DModel.from_pretrained(tmp_path / "transformer")
    ours = our_images(model, noise, 3, 1.0, PROMPTS)
    torch.testing.assert_close(ours, stock_images(stock, noise), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_adapters_go_to_every_attention_projection_of_the_real_network():
    with torch.device("meta"):
        network = QwenImageTransformer2DModel()
    layers = [key for key, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = [key for key in layers if any(key.endswith(f".{target}") for target in QwenImage.lora_targets)]
    assert adapted == [key for key in layers if ".attn." in key]
    assert len(adapted) == 60 * 8


@torch.no_grad()
def test_images_and_latents(model, stock):
    images = torch.rand(3, 3, 32, 32)
    latents = model.encode_images(images)
    assert latents.shape == (3, *model.latent_shape) == (3, 4, 8, 8)
    encoded = stock.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
    expected = stock.vae.decode(encoded).sample[:, :, 0] / 2 + 0.5
    torch.testing.assert_close(model.decode(latents), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(latents[:, 0], (encoded[:, 0, 0] + 0.5) / 2.0)
    with pytest.raises(UserError, match="has 48 x 48 pixels"):
        model.encode_images(torch.rand(3, 3, 48, 48))


def test_a_latent_space_is_told_from_another(load, model):
    space, other = model.latent_space, load()
    assert json.loads(json.dumps(space)) == space == other.latent_space
    other.pipeline.vae.register_to_config(latents_std=[1.0] * 4)
    scaled = other.latent_space
    other.pipeline.vae.decoder.conv_out.bias.data.add_(1)
    assert space != scaled != other.latent_space


def test_defaults_are_those_of_the_stock_call_and_what_does_not_fit_is_refused(stock):
    assert QwenImage(stock).latent_shape == (4, 128, 128)
    assert QwenImage(stock).max_sequence_length == 512
    assert QwenImage(stock, max_sequence_length=7).encode(PROMPTS).tensors["mask"].shape == (3, 7)
    for resolution in (0, 12, 36):
        with pytest.raises(UserError, match=f"resolution={resolution} does not fit .* multiples of 8 pixels"):
            QwenImage(stock, resolution)
    for length in (0, 1025):
        with pytest.raises(UserError, match=f"max_sequence_length={length} does not fit .* 1 to 1024"):
            QwenImage(stock, max_sequence_length=length)


def test_a_network_that_wants_to_be_told_its_guidance_is_refused_because_diffusers_cannot_run_it():
    pipeline = tiny_qwen_image()
    inputs = {"img_shapes": [[(1, 4, 4)]], "timestep": T[:1], "guidance": T[:1]}
    with pytest.raises(TypeError, match="positional arguments"):
        pipeline.transformer(torch.randn(1, 16, 16), torch.randn(1, 5, 16), **inputs)
    pipeline.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(UserError, match="guidance_embeds=true"):
        QwenImage(pipeline)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load, finetune):
    exact, rounded = load(finetune=finetune), load(finetune=finetune, dtype="bf16")
    x = exact.init_noise(generators())
    t = torch.tensor([1.0, 0.5, 0.25])  # in bf16 the network rounds t: these to themselves
    v = rounded.velocity(x, t, rounded.encode(PROMPTS), 2.0)
    v.square().mean().backward()
    assert v.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in rounded.weights.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in rounded.weights.parameters())
    frozen = rounded.network.txt_in.weight
    assert frozen.dtype == (torch.float32 if finetune == "full" else torch.bfloat16)
    assert rounded.decode(x).dtype == rounded.pipeline.vae.dtype == torch.float32
    error = (v - exact.velocity(x, t, exact.encode(PROMPTS), 2.0)).abs().mean()
    assert 0 < error < 0.1 * v.abs().mean()


def test_checkpointing_gives_the_same_gradients(load):
    def gradients(**settings):
        model = load(**settings)
        perturb(model)
        x = model.init_noise(generators())
        model.velocity(x, T, model.encode(PROMPTS)).square().mean().backward()
        return {key: parameter.grad for key, parameter in model.weights.named_parameters()}

    plain, again = gradients(), gradients(gradient_checkpointing=True)
    # nothing reads the text after the last block
    unread = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.to_add_out")
    assert all(key.startswith(unread) or (gradient is not None and gradient.any()) for key, gradient in plain.items())
    for key, gradient in plain.items():
        torch.testing.assert_close(gradient, again[key], rtol=1e-4, atol=1e-6)
