"""What a run exports draws the same pictures in stock diffusers as its averaged weights do here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from runs import PROMPTS, run, small, tensors
from safetensors.torch import save_file

from dgpo import Optimizer, Sampling, load_model
from dgpo.core import seeds
from dgpo.training.draw import draw

pytestmark = pytest.mark.slow

STEPS, GUIDANCE = 3, 3.0


def streams():
    return [seeds.generator(0, "export", i) for i in range(2)]


@pytest.fixture(params=["lora", "full"])
def trained(request, tiny_folder, tmp_path):
    """A finished run, and a model with its averaged weights as the last checkpoint has them."""
    config = small(tiny_folder, tmp_path / "run", iterations=2, finetune=request.param, optimizer=Optimizer(lr=2e-2))
    run(config)
    model = load_model(tiny_folder, device="cpu", finetune=config.finetune, lora=config.lora)
    ema = {k.removeprefix("ema."): t for k, t in tensors(tmp_path / "run", 2).items() if k.startswith("ema.")}
    model.weights.load("ema", ema)
    return tmp_path / "run", config, model


def stock_pipeline(folder, run_folder, finetune) -> Any:
    """Loaded as anybody would."""
    if finetune == "lora":
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
        pipeline.load_lora_weights(run_folder / "final")
    else:
        transformer = SD3Transformer2DModel.from_pretrained(run_folder / "final" / "transformer")
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            folder, transformer=transformer, text_encoder_3=None, tokenizer_3=None
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_stock_diffusers_draws_the_same(tiny_folder, trained, monkeypatch):
    run_folder, config, model = trained
    stock = stock_pipeline(tiny_folder, run_folder, config.finetune)
    prompts = list(PROMPTS[:2])
    cond, noise, t = model.encode(prompts), model.init_noise(streams()), torch.tensor([0.9, 0.4])

    with torch.no_grad():
        (v,) = stock.transformer(
            hidden_states=noise,
            timestep=t * 1000,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            pooled_projections=cond.tensors["pooled"],
            return_dict=False,
        )
        own = model.velocity(noise, t, cond, weights="ema")
        before = model.velocity(noise, t, cond, weights="ref")
    assert torch.equal(v, own), "velocities are equal bit for bit"
    assert (own - before).abs().max() > 1e-3, "training has changed them"

    sampling = Sampling(solver="euler", num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    monkeypatch.setattr(model, "sigmas", model.scheduler_sigmas)
    (drawn,) = draw(model, cond, streams(), sampling, "ema")
    expected = stock(
        prompt=prompts,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=0,
        output_type="pt",
    ).images
    assert expected.std() > 0.01
    torch.testing.assert_close(drawn.images, expected, rtol=0, atol=1e-5)


def test_every_lora_checkpoint_holds_one_for_stock_diffusers(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", iterations=2)
    run(config)
    last = tmp_path / "run" / "checkpoints" / "iteration-000002" / "lora" / "pytorch_lora_weights.safetensors"
    assert last.read_bytes() == (tmp_path / "run" / "final" / last.name).read_bytes()


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_what_a_run_leaves_is_as_readable_as_any_file(tiny_folder, tmp_path, finetune):
    run(small(tiny_folder, tmp_path / "run", iterations=1, finetune=finetune))
    (tmp_path / "any").touch()
    mode = (tmp_path / "any").stat().st_mode
    assert mode & 0o044, "the tests' own umask lets others read"
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".yaml"}
    assert {str(path): oct(path.stat().st_mode) for path in files if path.stat().st_mode != mode} == {}


STOCK = """
import json, sys, numpy, torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
pipe = StableDiffusion3Pipeline.from_pretrained(given["model"], text_encoder_3=None, tokenizer_3=None)
pipe.load_lora_weights(given["lora"])
for part in (pipe.vae, pipe.transformer):
    part.requires_grad_(False)  # torch convolves in another order where weights could have a gradient
steps = given["steps"]
embeds, _, pooled, _ = zip(*(
    pipe.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False, max_sequence_length=0)
    for prompt in given["prompts"]  # alone, as a run encodes them: a batch rounds otherwise
))
images = pipe(
    prompt_embeds=torch.cat(embeds), pooled_prompt_embeds=torch.cat(pooled), guidance_scale=1.0,
    latents=load_file(given["noise"])["noise"], sigmas=numpy.linspace(0.999, 0, steps + 1)[:-1],
).images
for number, image in enumerate(images):
    image.save(f"{given['out']}/{number:03d}.png")
"""


@pytest.mark.slow
def test_a_fresh_process_with_diffusers_alone_repeats_the_last_evaluation(tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    sampling = Sampling(solver="euler", num_inference_steps=STEPS, guidance_scale=1.0)
    config = small(tiny_folder, tmp_path / "run", iterations=1, sampling=sampling, optimizer=Optimizer(lr=2e-2))
    config = replace(
        config, eval_prompts={"own": str(tmp_path / "prompts.txt")}, eval_images_per_prompt=1, eval_every=1
    )
    run(config)
    model = load_model(tiny_folder, device="cpu", sets=())
    noise = model.init_noise([seeds.generator(config.seed, "eval", i, 0) for i in range(len(PROMPTS))])
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    given = {"model": tiny_folder, "lora": tmp_path / "run/final", "noise": tmp_path / "noise.safetensors"}
    given |= {"prompts": PROMPTS, "steps": STEPS, "out": tmp_path}
    subprocess.run([sys.executable, "-c", STOCK, json.dumps(given, default=str)], check=True)

    for number in range(len(PROMPTS)):
        first, last, stock = (
            Image.open(folder / f"{number:03d}.png").tobytes()
            for folder in (*(tmp_path / f"run/samples/iteration-00000{i}" for i in (0, 1)), tmp_path)
        )
        assert stock == last != first
