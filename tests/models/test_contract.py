"""What every family must do. What is special to one is in its own file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from parity import PROMPTS, assert_same_pictures, generators
from tiny_families import TINY, Tiny
from torch import Tensor, nn

from dgpo.errors import UserError
from dgpo.models import FAMILIES, LoraConfig, load_model
from dgpo.models.vp import VPFamily
from dgpo.utils.imports import import_named

T = torch.tensor([0.9, 0.5, 0.2])
SETS = ("ref", "old", "ema")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """The pipeline's class."""
    assert request.param in TINY, f"{request.param} has no tiny pipeline: add it to tests/helpers/tiny_families.py"
    return request.param


@pytest.fixture(scope="module")
def tiny(name: str) -> Tiny:
    return TINY[name]


@pytest.fixture(scope="module")
def kind(name: str) -> Any:
    return import_named(FAMILIES[name], "family")


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    tiny.make().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fresh(tiny: Tiny, folder: Path) -> Callable[..., Any]:
    """load_model on the tiny pipeline."""

    def fresh(**settings: Any) -> Any:
        own = {"sets": (), **tiny.settings, **settings}
        model: Any = load_model(folder, device="cpu", **own)
        tiny.prepared(model.pipeline)
        return model

    return fresh


@pytest.fixture(scope="module")
def load(fresh: Callable[..., Any]) -> Callable[..., Any]:
    """The same, once per settings: for tests that leave the model as it was."""
    return functools.cache(fresh)


@pytest.fixture(scope="module")
def reload(name: str, tiny: Tiny, folder: Path) -> Callable[[], Any]:
    """The pipeline as diffusers alone loads it."""

    def reload() -> Any:
        pipeline = getattr(diffusers, name).from_pretrained(folder, **dict.fromkeys(tiny.absent))
        pipeline.set_progress_bar_config(disable=True)
        return tiny.prepared(pipeline)

    return reload


@pytest.fixture(scope="module")
def stock(reload: Callable[[], Any]) -> Any:
    """The same, changed by no test."""
    return reload()


@pytest.fixture(scope="module")
def draw(load: Callable[..., Any], tiny: Tiny) -> Callable[..., Tensor]:
    """Our pictures of PROMPTS at a side (None: its own) and a guidance scale, drawn once."""

    def draw(side: int | None, guidance_scale: float) -> Tensor:
        model = load() if side is None else load(resolution=side)
        return tiny.images(model, unit_noise(model), 4, guidance_scale, PROMPTS)

    return functools.cache(draw)


def unit_noise(model: Any) -> Tensor:
    """As a stock call takes it. (3, C, h, w)."""
    return torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators()])


def read_alike(model: Any, one: str, other: str) -> bool:
    a, b = (model.encode([prompt]).tensors for prompt in (one, other))
    return all(a[key].shape == b[key].shape and torch.allclose(a[key], b[key]) for key in a)


def move(model: Any, far: float) -> None:
    """Weights that some training might have left. `tensors` shares storage, so adding in place moves the network."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(far * torch.randn(tensor.shape, generator=generator))


def test_the_pipeline_tells_its_family_and_its_shapes(load, tiny, kind):
    model = load()
    assert type(model.family) is kind
    assert model.latent_shape == tiny.latent_shape
    assert model.sigmas(10).shape == (11,)
    assert model.sigmas(10)[-1] == 0
    assert (model.sigmas(10).diff() < 0).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_the_stock_call_that_a_family_tells_draws_our_picture(load, draw, stock, tiny, guidance_scale):
    model = load()
    expected = stock(
        prompt=PROMPTS[0],
        latents=tiny.latents(stock, unit_noise(model)[:1]),
        num_inference_steps=4,
        output_type="pt",
        **model.stock_call(guidance_scale),
    ).images
    assert_same_pictures(draw(None, guidance_scale)[:1], expected, (1, 3, tiny.side, tiny.side))


def test_a_negative_prompt_is_the_stock_calls(fresh, draw, stock, tiny, kind):
    if "negative_prompt" not in signature(type(stock).__call__).parameters:
        with pytest.raises(UserError, match=r"negative_prompt='x' cannot work: a \w+ takes none"):
            fresh(negative_prompt="x")
        return
    model = fresh(negative_prompt="a blurry dog")
    assert "negative_prompt" not in model.stock_call(1.0) or model.stock_call(1.0)["negative_prompt"] == ""
    call = model.stock_call(4.5)
    assert call["negative_prompt"] == "a blurry dog"
    noise = unit_noise(model)
    expected = stock(
        prompt=PROMPTS[0], latents=tiny.latents(stock, noise[:1]), num_inference_steps=4, output_type="pt", **call
    ).images
    ours = tiny.images(model, noise[:1], 4, 4.5, PROMPTS[:1])
    assert_same_pictures(ours, expected, (1, 3, tiny.side, tiny.side))
    assert (ours - draw(None, 4.5)[:1]).abs().max() > 1e-3, "it makes a difference"
    cond, t = model.encode(PROMPTS[:1]), torch.full((1,), 0.5)
    before = model.velocity(noise[:1], t, cond, 3.0)
    model.free_encoders()
    assert torch.equal(model.velocity(noise[:1], t, cond, 3.0), before), "its row stays"


def test_a_prompt_is_called_too_long_where_its_end_is_not_read(load, tiny, caplog):
    model = load(**tiny.settings) if "CLIP" in tiny.lengths else load(**{**tiny.settings, "max_sequence_length": 24})
    text = "a"
    while not model.long_prompts([f"{text} cat"]):
        text += " cat"
    caplog.clear()
    assert not read_alike(model, text, f"{text[:-1]}r"), "its last letter is read"
    assert read_alike(model, f"{text} cat", f"{text} cat dog"), "nothing after the limit is read"
    assert not caplog.records, "diffusers says nothing of its own"


def test_what_stock_diffusers_must_be_told_is_absent_is_known_also_without_encoders(fresh, tiny):
    model = fresh()
    model.free_encoders()
    assert model.absent == tiny.absent


@pytest.mark.parametrize("size", ["own", pytest.param("other", marks=pytest.mark.slow)])
def test_our_walk_on_the_scheduler_grid_draws_the_stock_pictures(load, draw, stock, kind, tiny, size):
    side = tiny.side if size == "own" else tiny.other_side
    asked = None if size == "own" else side
    model = load() if asked is None else load(resolution=asked)
    for guidance_scale in (1.0, 4.5):
        expected = tiny.stock_images(stock, unit_noise(model), guidance_scale)
        assert_same_pictures(draw(asked, guidance_scale), expected, (3, 3, side, side))
    assert (draw(asked, 4.5) - draw(asked, 1.0)).abs().max() > 0.01
    if VPFamily not in kind.__mro__:
        torch.testing.assert_close(model.scheduler_sigmas(4), stock.scheduler.sigmas, rtol=1e-6, atol=0)


def test_a_model_at_another_resolution_is_the_one_loaded_at_it(load, stock, kind, tiny):
    model, loaded = load(), load(resolution=tiny.other_side)
    other = model.at_resolution(tiny.other_side)
    assert other.latent_shape == loaded.latent_shape
    assert model.latent_shape == tiny.latent_shape
    assert other.latent_space == loaded.latent_space
    assert torch.equal(other.sigmas(7), loaded.sigmas(7))
    assert torch.equal(other.init_noise(generators()), loaded.init_noise(generators()))
    assert other.stock_call(3.0) == loaded.stock_call(3.0)
    assert other.weights is model.weights
    for guidance_scale in (1.0, 4.5):
        ours = tiny.images(other, unit_noise(other), 4, guidance_scale, PROMPTS)
        expected = tiny.stock_images(stock, unit_noise(other), guidance_scale)
        assert_same_pictures(ours, expected, (3, 3, tiny.other_side, tiny.other_side))
    if VPFamily not in kind.__mro__:
        torch.testing.assert_close(other.scheduler_sigmas(4), stock.scheduler.sigmas, rtol=1e-6, atol=0)
    side = tiny.other_side
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.encode_images(images), loaded.encode_images(images))
    with pytest.raises(UserError, match=f"resolution={tiny.refused_sides[-1]} does not fit .* {tiny.sides}"):
        model.at_resolution(tiny.refused_sides[-1])


@torch.no_grad()
def test_a_model_at_another_resolution_is_guided_after_the_encoders_are_gone(fresh, tiny):
    model, loaded = fresh(), fresh(resolution=tiny.other_side)
    other, cond = model.at_resolution(tiny.other_side), model.encode(PROMPTS)
    model.free_encoders()
    x = other.init_noise(generators())
    assert torch.equal(other.velocity(x, T, cond, 2.0), loaded.velocity(x, T, cond, 2.0))


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(load):
    model = load()
    prompts = [*PROMPTS, ""]
    given = list(prompts)
    x, t, cond = model.init_noise(generators(4)), torch.tensor([0.9, 0.5, 0.2, 0.7]), model.encode(given)
    assert given == prompts
    alone = [model.encode([prompt]) for prompt in prompts]
    joined = alone[0].cat(*alone[1:])
    for scale in (1.0, 2.0):
        together = model.velocity(x, t, cond, scale)
        single = torch.cat([model.velocity(x[i : i + 1], t[i : i + 1], alone[i], scale) for i in range(4)])
        for v in (single, model.velocity(x, t, joined, scale)):
            torch.testing.assert_close(v, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_quantised_base_answers_nearly_as_the_whole_one_and_trains(load, fresh, bits):
    whole, model = load(), fresh(base_precision=bits)
    x, cond = whole.init_noise(generators()), whole.encode(PROMPTS)
    with torch.no_grad():
        expected = whole.velocity(x, T, cond)
    v = model.velocity(x, T, cond)
    assert (v.detach() - expected).norm() < {"int8": 0.05, "nf4": 0.5}[bits] * expected.norm()
    v.pow(2).mean().backward()
    gradients = [p.grad for p in model.weights.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert any(g is not None and g.any() for g in gradients)


def test_a_row_of_noise_depends_on_its_generator_only(load, tiny):
    noise = load().init_noise(generators())
    assert torch.equal(noise[1:2], load().init_noise(generators()[1:2]))
    assert not torch.equal(noise[0], noise[1])
    assert noise.dtype == torch.float32
    assert noise.shape == (3, *tiny.latent_shape)


@torch.no_grad()
def test_prompt_time_and_guidance_matter(load, tiny):
    model = load()
    x, cond = model.init_noise(generators(1)).repeat(3, 1, 1, 1), model.encode(PROMPTS)
    by_prompt = model.velocity(x, torch.full((3,), 0.5), cond)
    by_time = model.velocity(x, T, cond[torch.zeros(3, dtype=torch.long)])
    for v in (by_prompt, by_time):
        assert (v[0] - v[1]).abs().mean() > 0.02
        assert (v[1] - v[2]).abs().mean() > 0.02
    uncond, v = model.velocity(x, T, model.encode([""] * 3)), model.velocity(x, T, cond)
    assert (v - uncond).abs().max() > 0.1
    for scale in (1.0, 1.5, 3.0):
        guided = model.velocity(x, T, cond, scale)
        if tiny.linear_guidance:
            line = uncond + scale * (v - uncond)
            torch.testing.assert_close(guided, line, rtol=tiny.line_tolerance, atol=tiny.line_tolerance)
    assert (guided - uncond).abs().mean() > 0.05
    assert (guided - v).abs().mean() > 0.02


def test_the_empty_prompt_is_encoded_once(load, monkeypatch):
    model = load()
    monkeypatch.setattr(model, "_encoded_negative", [])
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    asked = []
    encode = model.pipeline.encode_prompt
    monkeypatch.setattr(
        model.pipeline, "encode_prompt", lambda prompts, *a, **k: asked.append([*prompts]) or encode(prompts, *a, **k)
    )
    with torch.no_grad():
        for _ in range(2):
            model.velocity(x, torch.full((3,), 0.5), cond, 2.0)
    assert asked == [[""]]


def test_no_gradient_reaches_encoders_or_decoder(load):
    model = load()
    cond = model.encode(PROMPTS)
    images = model.decode(model.init_noise(generators()).requires_grad_())
    assert not any(tensor.requires_grad for tensor in (*cond.tensors.values(), images))
    assert 0 <= images.min() < images.max() <= 1


@torch.no_grad()
def test_images_to_latents_and_back_is_the_stock_autoencoder(load, stock, tiny):
    model = load()
    images = torch.rand(3, 3, tiny.side, tiny.side, generator=torch.Generator().manual_seed(0))
    latents = model.encode_images(images)
    assert latents.shape == (3, *tiny.latent_shape)
    expected = tiny.round_trip(stock.vae, images).clamp(0, 1)
    torch.testing.assert_close(model.decode(latents), expected, rtol=0, atol=1e-5)
    other = tiny.other_side
    with pytest.raises(UserError, match=f"has {other} x {other} pixels"):
        model.encode_images(torch.rand(3, 3, other, other))


@torch.no_grad()
def test_an_autoencoder_in_bf16_draws_the_same_pictures_but_for_rounding(load, tiny):
    """Channels last where its kernels are two-dimensional. What latents mean does not change with its precision."""
    model, rounded = load(), load(vae_dtype="bf16")
    x0 = unit_noise(model)
    images, other = model.decode(x0), rounded.decode(x0)
    assert other.dtype == torch.float32
    assert other.is_contiguous()  # a reward may call view
    assert 0 < (other - images).abs().mean() < 0.02 * images.std()
    latents, other = model.encode_images(images), rounded.encode_images(images)
    assert other.dtype == torch.float32
    assert other.is_contiguous()
    assert 0 < (other - latents).abs().mean() < 0.03 * latents.std()
    weights = list(rounded.pipeline.vae.parameters())
    assert {w.dtype for w in weights} == {torch.bfloat16}
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.dim() == 4)
    assert {p.dtype for p in rounded.network.parameters()} == {torch.float32}
    assert rounded.latent_space == model.latent_space


def test_a_latent_space_is_told_from_another(load, stock, tiny, monkeypatch):
    model = load()
    told = json.loads(json.dumps(model.latent_space))
    assert told == model.latent_space == load(finetune="full", dtype="bf16").latent_space
    assert told["latent_shape"] == list(tiny.latent_shape)
    assert told["scaling_factor"] == (stock.vae.config.get("scaling_factor") or 1.0)
    moved = deepcopy(model.pipeline.vae)
    moved.decoder.conv_out.bias.data.add_(1)
    for other in (moved, tiny.make(seed=1).vae):
        monkeypatch.setattr(model.pipeline, "vae", other)
        assert model.latent_space != told


def test_each_weight_set_answers_with_its_own_weights(fresh, tiny):
    model = fresh(sets=SETS, finetune="lora")
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    with torch.no_grad():
        before = model.velocity(x, T, cond)
    move(model, tiny.moved)
    for weights in SETS:
        v = model.velocity(x, T, cond, weights=weights)
        assert not v.requires_grad
        torch.testing.assert_close(v, before, rtol=1e-5, atol=1e-5)
    moved = model.velocity(x, T, cond)
    assert moved.requires_grad
    assert (moved - before).abs().max() > 0.01


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_lora_draws_the_same_pictures_in_the_stock_pipeline(fresh, draw, reload, tiny, tmp_path):
    model, stock = fresh(lora=LoraConfig(rank=4, alpha=8)), reload()
    noise = unit_noise(model)
    move(model, tiny.moved)
    model.weights.export(tmp_path, "policy")
    tiny.load_lora(stock, tmp_path)
    ours = tiny.images(model, noise, 4, 4.5, PROMPTS)
    assert (ours - draw(None, 4.5)).abs().max() > 0.05
    torch.testing.assert_close(ours, tiny.stock_images(stock, noise, 4.5), rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_exported_network_draws_the_same_pictures_in_the_stock_pipeline(fresh, reload, tiny, tmp_path):
    model, stock = fresh(finetune="full"), reload()
    noise, cond = unit_noise(model), model.encode(PROMPTS)
    move(model, tiny.moved)
    model.weights.export(tmp_path, "policy")
    network = type(model.network).from_pretrained(tmp_path / model.family.network)
    stock.register_modules(**{model.family.network: network})
    ours = tiny.images(model, noise, 4, 4.5, PROMPTS)
    torch.testing.assert_close(ours, tiny.stock_images(stock, noise, 4.5), rtol=0, atol=tiny.network_tolerance)
    v = model.velocity(noise, T, cond, 2.0)
    model.pipeline.register_modules(**{model.family.network: network})
    assert torch.equal(model.velocity(noise, T, cond, 2.0), v)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # fp32 norms of a whole network
@torch.no_grad()
def test_a_reference_in_bf16_answers_as_the_fp32_weights_that_it_came_from(load, tiny):
    """Bit for bit: autocast rounds the policy, from which nothing has moved yet, to the same weights."""
    model = load(**{**tiny.bf16, "sets": ("ref",)}, finetune="full", dtype="bf16")
    x, t, cond = model.init_noise(generators()), torch.tensor(tiny.bf16_t), model.encode(PROMPTS)
    assert torch.equal(model.velocity(x, t, cond, 2.0, "ref"), model.velocity(x, t, cond, 2.0, "policy"))
    ref, policy = (sum(t.nbytes for t in model.weights.tensors(name).values()) for name in ("ref", "policy"))
    assert ref < 0.6 * policy


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # fp32 norms of a whole network
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load, tiny, finetune):
    exact, rounded = load(**tiny.bf16), load(**tiny.bf16, finetune=finetune, dtype="bf16")
    x, t = exact.init_noise(generators()), torch.tensor(tiny.bf16_t)
    v = rounded.velocity(x, t, rounded.encode(PROMPTS), 2.0)
    trained = list(rounded.weights.parameters())
    grads = torch.autograd.grad(v.square().mean(), trained, allow_unused=True)
    assert v.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert any(grad is not None and grad.any() for grad in grads)
    dtypes = {parameter.dtype for parameter in rounded.network.parameters() if not parameter.requires_grad}
    assert dtypes == (set() if finetune == "full" else {torch.bfloat16})
    assert rounded.decode(x).dtype == rounded.pipeline.vae.dtype == torch.float32
    with torch.no_grad():
        error = (v - exact.velocity(x, t, exact.encode(PROMPTS), 2.0)).abs().mean()
    assert 0 < error < 0.1 * v.abs().mean()


def test_gradient_checkpointing_changes_no_gradient(fresh, tiny):
    gradients = []
    for gradient_checkpointing in (False, True):
        model = fresh(gradient_checkpointing=gradient_checkpointing)
        move(model, tiny.moved)
        v = model.velocity(model.init_noise(generators()), T, model.encode(PROMPTS))
        v.square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in model.weights.named_parameters()})
    plain, again = gradients
    assert plain
    idle = {key for key, gradient in plain.items() if gradient is None or not gradient.any()}
    assert idle == {key for key in plain if key.startswith(tiny.unread)}
    for key, gradient in plain.items():
        atol = 0.0 if gradient is None else 1e-6 * min(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(again[key], gradient, rtol=1e-6, atol=atol)


def test_a_side_that_does_not_fit_is_refused(fresh, kind, stock, tiny):
    with pytest.raises(UserError, match=f"resolution={tiny.refused_sides[-1]} does not fit .* {tiny.sides}"):
        fresh(resolution=tiny.refused_sides[-1])
    for side in tiny.refused_sides:
        with pytest.raises(UserError, match=f"resolution={side} does not fit .* {tiny.sides}"):
            kind(stock, side)


def test_a_text_length_that_does_not_fit_is_refused(kind, stock, tiny):
    for length in tiny.refused_lengths:
        with pytest.raises(UserError, match=f"max_sequence_length={length}.* {tiny.lengths}"):
            kind(stock, tiny.side, length)


def test_lora_reaches_every_attention_projection_of_the_real_network(kind, tiny):
    with torch.device("meta"):
        network = tiny.real()
    layers = {key for key, module in network.named_modules() if isinstance(module, nn.Linear)}
    attention = {key for key in layers if re.search(tiny.attention, key)}
    assert len(attention) == tiny.projections
    targets = tuple(f".{target}" for target in kind.lora_targets)
    assert attention == {key for key in layers if f".{key}".endswith(targets)}, "as PEFT compares"
