"""The shipped model of the words world: a stock pipeline, small, legible, and bad at spelling."""

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
from dgpo.worlds.words.prompts import spell
from dgpo.worlds.words.reader import read
from dgpo.worlds.words.render import draw, render

FOLDER = Path(locate("tiny-sd3-words"))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-sd3-words", finetune="full", sets=(), device="cpu")


def test_it_is_small_safe_and_described() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}
    assert "misspelt" in (FOLDER / "README.md").read_text()
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"


def test_stock_diffusers_draws_the_same(model) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    noise = model.init_noise([seeds.generator(0, "test", i) for i in range(2)])
    prompts = ['the word "CAP"', 'the word "LE"']
    stock = pipe(
        prompts, latents=noise, num_inference_steps=4, guidance_scale=1.0, max_sequence_length=0, output_type="pt"
    ).images
    cond = model.encode(prompts)
    with torch.no_grad():
        x0 = solve(lambda x, t: model.velocity(x, t, cond), noise, model.scheduler_sigmas(4), "euler")
    torch.testing.assert_close(decode(model, x0, 2), stock, rtol=0, atol=1e-4)


def test_clean_words_survive_the_autoencoder(model) -> None:
    rows = load_prompts("words:train").metadata[:96]
    letters = spell(row["text"] for row in rows)
    images = render(draw(letters, seeds.generator(1, "round trip")))
    with torch.no_grad():
        latents = model.pipeline.vae.encode(images * 2 - 1).latents
        decoded = model.pipeline.vae.decode(latents).sample.div(2).add(0.5).clamp(0, 1)
    assert (read(decoded).letters == letters).all(1).float().mean() >= 0.99


def test_its_letters_are_legible_and_its_words_misspelt(model) -> None:
    prompts = load_prompts("words:seen")
    cond = model.encode(prompts.prompts)
    noise = model.init_noise([seeds.generator(0, "base", i) for i in range(len(prompts))])
    with torch.no_grad():
        x0 = solve(lambda x, t: model.velocity(x, t, cond), noise, model.sigmas(10))
    scores, _ = RewardSet({"legibility": 1.0})(decode(model, x0, 64), prompts.prompts, prompts.metadata)
    assert scores["legibility"].mean() > 0.5
    assert 0.02 < scores["legibility/exact"].mean() < 0.7
