from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_flux import tiny_flux

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import LoraConfig, load_model
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


def perturb(model):
    """`tensors` shares storage, so adding in place changes the network."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dev", "schnell"])
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
    with pytest.raises(UserError, match="is not told its guidance"):
        load("schnell", distilled_guidance=3.5)


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(model):
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    alone = [model.encode([prompt]) for prompt in PROMPTS]
    joined = model.velocity(x, T, alone[0].cat(*alone[1:]), 2.0)
    single = torch.cat([model.velocity(x[i : i + 1], T[i : i + 1], alone[i], 2.0) for i in range(3)])
    for v in (joined, single):
        torch.testing.assert_close(v, model.velocity(x, T, cond, 2.0), rtol=1e-4, atol=1e-4)


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


@pytest.mark.slow
def test_a_lora_is_read_by_stock_diffusers(folders, load, tmp_path):
    model, stock = load(lora=LoraConfig(rank=4, alpha=8)), stock_pipeline(folders / "dev")
    noise = model.init_noise(generators())
    perturb(model)
    ours = our_images(model, noise, 3, 1.0, PROMPTS)
    assert (ours - stock_images(stock, noise)).abs().max() > 0.05
    model.weights.export(tmp_path, "policy")
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(ours, stock_images(stock, noise), rtol=0, atol=1e-5)


def test_a_fully_trained_network_is_read_by_stock_diffusers(folders, load, tmp_path):
    model, stock = load(finetune="full"), stock_pipeline(folders / "dev")
    noise = model.init_noise(generators())
    perturb(model)
    model.weights.export(tmp_path, "policy")
    stock.transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer")
    ours = our_images(model, noise, 3, 1.0, PROMPTS)
    torch.testing.assert_close(ours, stock_images(stock, noise), rtol=0, atol=1e-5)


def test_adapters_go_to_every_attention_projection_of_the_real_network():
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
    layers = [key for key, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = [key for key in layers if any(key.endswith(f".{target}") for target in Flux.lora_targets)]
    assert adapted == [key for key in layers if ".attn." in key]
    assert len(adapted) == 19 * 8 + 38 * 3


@torch.no_grad()
def test_images_and_latents(model, stock):
    vae = stock.vae
    images = torch.rand(3, 3, 32, 32)
    latents = model.encode_images(images)
    assert latents.shape == (3, *model.latent_shape) == (3, 4, 8, 8)
    expected = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
    torch.testing.assert_close(model.decode(latents), expected.clamp(0, 1), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="has 48 x 48 pixels"):
        model.encode_images(torch.rand(3, 3, 48, 48))


def test_a_latent_space_is_told_from_another(load, model):
    space, other = model.latent_space, load()
    assert json.loads(json.dumps(space)) == space == other.latent_space
    other.pipeline.vae.decoder.conv_out.bias.data.add_(1)
    assert other.latent_space != space


def test_defaults_are_those_of_the_stock_call_and_what_does_not_fit_is_refused(stock):
    assert Flux(stock).latent_shape == (4, 128, 128)
    assert Flux(stock).max_sequence_length == 512
    for resolution in (0, 12, 36):
        with pytest.raises(UserError, match=f"resolution={resolution} does not fit .* multiples of 8 pixels"):
            Flux(stock, resolution)
    for length in (0, 513):
        with pytest.raises(UserError, match=f"max_sequence_length={length} does not fit .* 1 to 512"):
            Flux(stock, max_sequence_length=length)


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # fp32 norms, when the network trains whole
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load, finetune):
    settings = {"finetune": finetune, "distilled_guidance": 4.0}
    exact, rounded = load(**settings), load(**settings, dtype="bf16")
    x = exact.init_noise(generators())
    t = torch.tensor(
        [1.0, 0.5, 0.25]
    )  # in bf16 the network rounds 1000 t and 1000 times the guidance: here to themselves
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


def test_checkpointing_gives_the_same_gradients(load):
    def gradients(**settings):
        model = load(**settings)
        perturb(model)
        x = model.init_noise(generators())
        model.velocity(x, T, model.encode(PROMPTS)).square().mean().backward()
        return [parameter.grad for parameter in model.weights.parameters()]

    plain, again = gradients(), gradients(gradient_checkpointing=True)
    assert all(gradient is not None and gradient.any() for gradient in plain)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
