"""What is special to FLUX.2 [klein]; what every family must do is in test_contract.py."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import PROMPTS, assert_same_pictures, generators, our_images
from runs import run, small
from tiny_flux2 import tiny_flux2

from dgpo.algorithms import DGPO
from dgpo.config import Sampling
from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.plan.estimates import estimate


def load(folder: Path, **settings: Any) -> Any:
    return load_model(folder, device="cpu", sets=(), **{"resolution": 32, "max_sequence_length": 64, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("klein")
    tiny_flux2().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distilled")
    tiny_flux2(is_distilled=True).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("side", "steps", "mu"),
    [
        # at 4096 tokens, 1024 pixels: 8.73809524e-05 * 4096 + 1.89833333 for ten steps, .00016927 * 4096 + .45666666
        # for 200, and the line through both between
        (1024, 10, 2.25624569),
        (1024, 200, 1.14999658),
        (1024, 105, (2.25624569 + 1.14999658) / 2),
        # above 4300 tokens the number of steps makes no difference
        (1072, 10, 0.00016927 * 67**2 + 0.45666666),
        (1072, 50, 0.00016927 * 67**2 + 0.45666666),
    ],
)
def test_the_shift_follows_the_tokens_and_the_steps(side: int, steps: int, mu: float, folder: Path) -> None:
    model = load(folder, resolution=side // 2)  # of the tiny autoencoder: as many latents
    assert model.family.shift_for(steps) == pytest.approx(math.exp(mu), rel=1e-5)
    torch.testing.assert_close(model.sigmas(steps), flow_sigmas(steps, math.exp(mu)), rtol=1e-5, atol=1e-6)
    assert model.shift == model.family.shift_for(50)
    assert torch.equal(load(folder, shift=2.0).sigmas(steps), flow_sigmas(steps, 2.0)), "a given shift is kept"


def test_latents_are_normalised_patch_by_patch(folder: Path) -> None:
    model = load(folder)
    vae = model.pipeline.vae
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = model.family.to_vae(x0)
    for channel, row, column in ((0, 0, 0), (1, 0, 1), (3, 1, 0), (2, 1, 1)):
        number = 4 * channel + 2 * row + column
        expected = x0[:, channel, row::2, column::2] * (vae.bn.running_var[number] + 1e-4).sqrt()
        torch.testing.assert_close(ours[:, channel, row::2, column::2], expected + vae.bn.running_mean[number])
    torch.testing.assert_close(model.family.from_vae(ours), x0)


def test_the_distilled_model_draws_what_its_pipeline_draws_and_refuses_guidance(distilled: Path) -> None:
    model = load(distilled)
    noise = model.init_noise(generators())
    stock = tiny_flux2(is_distilled=True)
    theirs = stock(
        prompt=list(PROMPTS), latents=torch.nn.functional.pixel_unshuffle(noise, 2), num_inference_steps=4,
        height=32, width=32, max_sequence_length=64, guidance_scale=1.0, output_type="pt",
    ).images  # fmt: skip
    assert_same_pictures(our_images(model, noise, 4, 1.0, PROMPTS), theirs, (3, 3, 32, 32))
    cond, t = model.encode(PROMPTS), torch.full((3,), 0.5)
    with pytest.raises(UserError, match=r"guidance 2\.0 cannot work: this model is distilled"):
        model.velocity(noise, t, cond, 2.0)


@pytest.mark.parametrize(("sampled", "of_ref"), [(3.0, 1.0), (1.0, 4.5)])
def test_a_run_that_would_guide_it_is_refused_before_anything_is_written(
    sampled: float, of_ref: float, distilled: Path, tmp_path: Path
) -> None:
    config = small(distilled, tmp_path / "run", resolution=32, max_sequence_length=64)
    config = replace(
        config,
        algorithm=DGPO(ref_guidance_scale=of_ref, num_points=1, trunc_steps=1),
        sampling=Sampling(num_inference_steps=2, guidance_scale=sampled),
    )
    with pytest.raises(UserError, match="distilled to draw without"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_the_plan_refuses_it_too(distilled: Path, tmp_path: Path) -> None:
    config = small(distilled, tmp_path / "run", resolution=32, max_sequence_length=64)
    for scale, known in ((1.0, True), (3.0, False)):
        config = replace(config, sampling=replace(config.sampling, guidance_scale=scale))
        found = estimate(config, 1, False, "a cat")
        assert (not found.unknown) is known
    assert "distilled to draw without" in found.unknown


def test_prompts_beyond_the_text_length_are_told(folder: Path) -> None:
    model = load(folder)
    limit = model.family.text_limits()["tokenizer"]
    assert limit == 64 - len("<|im_start|>user\n") + len("<|im_start|>") - 1  # a mark is one token, the rest bytes
    assert model.long_prompts(["x" * limit]) == []
    assert "1 of 2 prompts is longer" in model.long_prompts(["x", "x" * (limit + 1)])[0]
