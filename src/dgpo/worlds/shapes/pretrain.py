"""Pretrains `tiny-sd3` on the shapes world: the autoencoder first, then the transformer with its text encoders.

The autoencoder learns by L1 (foreground counts five times) from slightly noisy latents. The transformer learns by
flow matching (Lipman et al. 2023; t from a logit-normal as in SD3, Esser et al. 2024) with captions dropped for
guidance and, in a known share, wrong (captions.py). Now and then a step appends 256 empty T5 tokens, as the stock
pipeline does when it is called without `max_sequence_length=0`.

    python -m dgpo.worlds.shapes.pretrain --out runs/tiny-sd3 --device cuda

It can be stopped and started again: the state is saved every `--save-every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dgpo import checkpoint
from dgpo.core import seeds
from dgpo.core.ema import ema_update
from dgpo.worlds.shapes.build import build_pipeline
from dgpo.worlds.shapes.captions import WRONG, Captions, build_captions, caption_rows, draw_prompts
from dgpo.worlds.shapes.muon import Muon
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import Scenes, draw, requests
from dgpo.worlds.shapes.tokenizer import build_tokenizer
from dgpo.worlds.shapes.vocabulary import TINTS

EMPTY_T5_TOKENS, EMPTY_T5_EVERY = 256, 64
LATENT_NOISE = 0.05


@dataclass(frozen=True)
class Pretrain:
    """Settings of one pretraining run."""

    out: str = "runs/tiny-sd3"
    device: str = "cpu"
    seed: int = 0
    pool: int = 60_000
    """Scenes that are drawn once and used all along."""
    autoencoder_steps: int = 2000
    autoencoder_batch: int = 32
    flow_steps: int = 8000
    flow_batch: int = 72
    autoencoder_lr: float = 2e-3
    flow_lr: float = 2e-3
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    layers: int = 4
    width: int = 128
    wrong_scale: float = 1.0
    """Multiplies the shares of wrong captions in captions.WRONG."""
    compile: bool = False
    """torch.compile the transformer: a minute at the start, then a fifth faster."""
    save_every: int = 500
    log_every: int = 100
    autoencoder: str | None = None
    """A folder of an earlier run whose autoencoder is used instead of training one."""


def main(settings: Pretrain) -> Path:
    """Runs both stages and writes a StableDiffusion3Pipeline folder to OUT/pipeline, weights in fp16."""
    device, out = torch.device(settings.device), Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    pipe = build_pipeline(settings.seed, settings.width, settings.layers).to(device)
    captions = build_captions().to(device)
    rows, scenes = _pool(captions, settings)
    if settings.autoencoder:
        pipe.vae.load_state_dict(load_file(Path(settings.autoencoder) / "autoencoder.safetensors"))
    else:
        train_autoencoder(pipe.vae, scenes, settings)
    latents = _encode_pool(pipe.vae, scenes)
    train_flow(pipe, captions, rows, latents, settings)
    return _write_pipeline(pipe, out / "pipeline")


def train_autoencoder(vae: Any, scenes: Scenes, settings: Pretrain) -> None:
    """Weighted L1 on renders from noisy latents; each latent channel is held to mean 0 and deviation 1."""
    palette = torch.tensor(TINTS, device=settings.device) / 255
    vae.to(memory_format=torch.channels_last)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        picked = Scenes(*(part[_draw(len(scenes.tint), settings.autoencoder_batch, generator)] for part in scenes))
        images = render(picked).contiguous(memory_format=torch.channels_last)
        ground = palette[picked.tint][:, :, None, None]
        weight = 1 + 4 * ((images - ground).abs().amax(1, keepdim=True) > 0.02)
        latents = vae.encode(images * 2 - 1).latents
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        decoded = vae.decode(latents + LATENT_NOISE * noise).sample
        error = (weight * (decoded - (images * 2 - 1)).abs()).sum() / (3 * weight.sum())
        spread = latents.mean((0, 2, 3)).square() + (latents.std((0, 2, 3)) - 1).square()
        return error + 0.01 * spread.mean()

    modules = nn.ModuleDict({"vae": vae})
    _optimise(modules, loss, "autoencoder", settings.autoencoder_steps, settings.autoencoder_lr, settings)
    save_file(
        {name: tensor.contiguous() for name, tensor in vae.state_dict().items()},
        Path(settings.out) / "autoencoder.safetensors",
    )


def train_flow(
    pipe: StableDiffusion3Pipeline, captions: Captions, rows: Tensor, latents: Tensor, settings: Pretrain
) -> None:
    """Flow matching of the transformer and both text encoders, at the end the EMA of their weights."""
    device = latents.device
    tokens = _tokenise(pipe, [p["prompt"] for p in captions.prompts]).to(device)
    empty = len(captions.prompts)
    wrong = {kind: min(1.0, share * settings.wrong_scale) for kind, share in WRONG.items()}

    compiled = torch.compile(pipe.transformer) if settings.compile else pipe.transformer

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = _draw(len(rows), settings.flow_batch, generator)
        caption = caption_rows(captions, rows[index], generator, wrong)
        drop = torch.rand(len(index), generator=generator, device=device) < settings.caption_dropout
        embeds, pooled = embed(pipe, tokens[torch.where(drop, empty, caption)])
        network = compiled
        if step % EMPTY_T5_EVERY == 0:
            network = pipe.transformer
            embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), EMPTY_T5_TOKENS, embeds.shape[-1])], dim=1)
        x0 = latents[index].float()
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.sigmoid(0.4 + 1.2 * torch.randn(len(x0), generator=generator, device=device))
        x_t = torch.lerp(x0, noise, t[:, None, None, None])
        v = network(x_t, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=1000 * t).sample
        return (v.float() - (noise - x0)).square().mean()

    modules = nn.ModuleDict({name: getattr(pipe, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    _optimise(modules, loss, "flow", settings.flow_steps, settings.flow_lr, settings)


def embed(pipe: StableDiffusion3Pipeline, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (n, 16) -> prompt_embeds (n, 16, D), pooled (n, P): what `encode_prompt` makes of them without T5."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    embeds = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
    return embeds, torch.cat([o.text_embeds for o in outputs], dim=-1)


def _optimise(
    modules: nn.ModuleDict,
    loss_at: Callable[[int, torch.Generator], Tensor],
    stage: str,
    steps: int,
    lr: float,
    settings: Pretrain,
) -> None:
    """AdamW with warm-up and cosine decay, clipped gradients and an EMA that replaces the weights at the end."""
    parameters = dict(modules.named_parameters())
    optimizers = _optimizers(parameters, lr)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    states = Path(settings.out) / stage
    first = _restore(states, parameters, average, optimizers)
    generator = torch.Generator(settings.device)
    autocast = torch.autocast(generator.device.type, torch.bfloat16, enabled=generator.device.type == "cuda")
    started = time.monotonic()
    for step in range(first, steps):
        generator.manual_seed(seeds.generator(settings.seed, stage, step).initial_seed())
        for group in [g for o in optimizers.values() for g in o.param_groups]:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        with autocast:
            value = loss_at(step, generator)
        modules.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        ema_update(average.values(), parameters.values(), min(settings.ema_decay, (1 + step) / (10 + step)))
        if (step + 1) % settings.log_every == 0:
            print(f"{stage} {step + 1}/{steps} loss {value.item():.4f} {time.monotonic() - started:.0f}s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == steps:
            moments = {n: checkpoint.optimizer_tensors(o, _names(o, parameters)) for n, o in optimizers.items()}
            checkpoint.save(states, step + 1, {"weights": parameters, "average": average, **moments}, {})
            checkpoint.prune(states, keep_last=2)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(average[name])


def _optimizers(parameters: dict[str, nn.Parameter], lr: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the attention and feed-forward matrices of the transformer, AdamW for everything else."""
    matrices = [
        p for name, p in parameters.items() if "transformer_blocks" in name and "norm" not in name and p.dim() == 2
    ]
    taken = set(map(id, matrices))
    rest = [p for p in parameters.values() if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    return {"adamw": adamw, **({"muon": Muon(matrices, lr)} if matrices else {})}


def _names(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Names in the optimizer's own order."""
    names = {id(p): name for name, p in parameters.items()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _restore(
    states: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizers: dict[str, torch.optim.Optimizer],
) -> int:
    path = checkpoint.latest(states)
    if path is None:
        return 0
    tensors, _ = checkpoint.load(path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors["weights"][name])
            average[name].copy_(tensors["average"][name])
    for name, optimizer in optimizers.items():
        checkpoint.load_optimizer_tensors(optimizer, _names(optimizer, parameters), tensors[name])
    return checkpoint.iteration_of(path)


def _pool(captions: Captions, settings: Pretrain) -> tuple[Tensor, Scenes]:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    rows = draw_prompts(captions, settings.pool, generator)
    wanted = requests(captions.prompts)
    return rows, draw(wanted.rows(rows.cpu()), generator)


@torch.no_grad()
def _encode_pool(vae: Any, scenes: Scenes, batch: int = 500) -> Tensor:
    """Latent means of all scenes (N, C, h, w), scaled by the statistics that are then the autoencoder's config."""
    chunks = zip(*(part.split(batch) for part in scenes))
    latents = torch.cat([vae.encode(render(Scenes(*chunk)) * 2 - 1).latents for chunk in chunks])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 6), scaling_factor=round(scale, 6))
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def _tokenise(pipe: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    """Token ids (len(texts) + 1, 16); the last row is the empty prompt."""
    return pipe.tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids


def _draw(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(size, (count,), generator=generator, device=generator.device)


def _write_pipeline(pipe: StableDiffusion3Pipeline, folder: Path) -> Path:
    """Transformer and autoencoder in fp16. The text encoders stay fp32: transformers loads them as they are stored."""
    pipe.tokenizer = pipe.tokenizer_2 = build_tokenizer()  # one that has been used saves how it padded
    pipe.to("cpu").save_pretrained(folder)
    pipe.transformer.half().save_pretrained(folder / "transformer")
    pipe.vae.half().save_pretrained(folder / "vae")
    return folder


if __name__ == "__main__":
    print(main(tyro.cli(Pretrain)))
