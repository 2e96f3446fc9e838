"""The shipped model: a stock pipeline, small, crisp, and bad at following prompts in the way that the demo mends."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dgpo.core import seeds
from dgpo.core.solvers import solve
from dgpo.data import load_prompts
from dgpo.models import load_model, locate
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import decode
from dgpo.worlds.shapes.captions import build_captions, draw_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests

FOLDER = Path(locate("tiny-sd3"))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-sd3", finetune="full", sets=(), device="cpu")


def test_it_is_small_safe_and_described() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}
    assert "captions" in (FOLDER / "README.md").read_text()
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"


def test_stock_diffusers_draws_the_same(model) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    noise = model.init_noise([seeds.generator(0, "test", i) for i in range(2)])
    prompts = ["a red circle", "two stars"]
    stock = pipe(
        prompts, latents=noise, num_inference_steps=4, guidance_scale=1.0, max_sequence_length=0, output_type="pt"
    ).images
    cond = model.encode(prompts)
    with torch.no_grad():
        x0 = solve(lambda x, t: model.velocity(x, t, cond), noise, model.scheduler_sigmas(4), "euler")
    torch.testing.assert_close(decode(model, x0, 2), stock, rtol=0, atol=1e-4)


def test_clean_renders_survive_the_autoencoder(model) -> None:
    table, rng = build_captions(), seeds.generator(1, "round trip")
    rows = draw_prompts(table, 300, rng)
    images = render(draw(requests(table.prompts).rows(rows), rng))
    with torch.no_grad():
        latents = model.pipeline.vae.encode(images * 2 - 1).latents
        decoded = model.pipeline.vae.decode(latents).sample.div(2).add(0.5).clamp(0, 1)
    metadata = [table.prompts[row] for row in rows.tolist()]
    scores, _ = RewardSet({"shapes_strict": 1.0})(decoded, [m["prompt"] for m in metadata], metadata)
    assert scores["shapes_strict"].mean() >= 0.98


def test_it_follows_prompts_now_and_then(model) -> None:
    prompts = load_prompts("shapes:seen")
    cond = model.encode(prompts.prompts)
    noise = model.init_noise([seeds.generator(0, "base", i) for i in range(len(prompts))])
    with torch.no_grad():
        x0 = solve(lambda x, t: model.velocity(x, t, cond, 2.0), noise, model.sigmas(10))
    scores, _ = RewardSet({"shapes_strict": 1.0})(decode(model, x0, 64), prompts.prompts, prompts.metadata)
    assert 0.35 <= scores["shapes_strict"].mean() <= 0.65
