from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_z_image import save_tiny_z_image

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.z_image import ZImage

T = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_z_image(tmp_path_factory.mktemp("models") / "z-image")


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Callable[..., Any]:
    """load_model on the tiny pipeline; its own resolution, 1024, is too much for a test."""
    return lambda **settings: load_model(folder, device="cpu", **{"resolution": 64, **settings})


@pytest.fixture(scope="module")
def load(fresh: Callable[..., Any]) -> Callable[..., Any]:
    """The same, once per settings: for tests that leave the model as it was."""
    return functools.cache(fresh)


@pytest.fixture(scope="module")
def reload(folder: Path) -> Callable[[], Any]:
    """The pipeline as diffusers alone loads it."""

    def reload() -> Any:
        pipeline = ZImagePipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return reload


@pytest.fixture(scope="module")
def stock(reload: Callable[[], Any]) -> Any:
    return reload()


def stock_images(stock: Any, noise: torch.Tensor, guidance_scale: float, **settings: Any) -> torch.Tensor:
    """A stock call; guidance_scale is ours, so that diffusers' is one less."""
    side = noise.shape[-1] * 8
    return stock(
        prompt=list(PROMPTS),
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale - 1,
        height=side,
        width=side,
        output_type="pt",
        **settings,
    ).images


def test_normalised_guidance_is_the_stock_one(fresh, stock):
    model = fresh()
    noise = model.init_noise(generators())
    plain = our_images(model, noise, 4, 4.0, PROMPTS)
    model.family.cfg_normalization = 0.8
    ours = our_images(model, noise, 4, 4.0, PROMPTS)
    assert (ours - plain).abs().max() > 0.05
    assert_same_pictures(ours, stock_images(stock, noise, 4.0, cfg_normalization=0.8), (3, 3, 64, 64))


def test_grids(load, reload):
    model = load()
    assert torch.equal(model.sigmas(10), flow_sigmas(10, 3.0))
    assert model.sigmas(10)[-1] == 0
    torch.testing.assert_close(model.scheduler_sigmas(4), torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    stock = reload()
    stock.scheduler = type(stock.scheduler)(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=40)
    noise = torch.zeros(1, 4, 12, 12)
    stock(prompt="x", latents=noise, num_inference_steps=4, guidance_scale=0, height=96, width=96, output_type="latent")
    family = ZImage(stock, 96)
    torch.testing.assert_close(family.scheduler_sigmas(4), stock.scheduler.sigmas)
    even = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    torch.testing.assert_close(family.scheduler_sigmas(4), family.shift * even / (1 + (family.shift - 1) * even))


def test_prompts_of_the_contract_lie_on_both_sides_of_a_group_of_tokens(load):
    lengths = load().encode(PROMPTS).tensors["length"].tolist()
    assert len({*lengths}) == 3, lengths
    assert max(lengths) > 32 > min(lengths)


def test_adapters_sit_on_all_three_parts_of_the_network(load):
    adapted = {key.split(".")[0] for key in load().weights.tensors("policy")}
    assert adapted == {"layers", "noise_refiner", "context_refiner"}


def test_its_own_side_is_more_than_the_tiny_network_can_place(stock):
    with pytest.raises(UserError, match="multiples of 16 pixels up to 256"):
        ZImage(stock)
