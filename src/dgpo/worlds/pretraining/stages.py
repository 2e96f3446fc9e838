"""Pretrains an embedded model on its world: the autoencoder first, then the transformer with its text encoders.

The autoencoder learns by L1 (foreground counts five times) from slightly noisy latents. The transformer learns by
flow matching (Lipman et al. 2023; t from a logit-normal as in SD3, Esser et al. 2024) with captions dropped for
guidance and, after `right_steps`, in a known share wrong (each world's captions.py). Now and then a step appends 256
empty T5 tokens, as the stock pipeline does when it is called without `max_sequence_length=0`.

Flow matching hardly pays for meaning: two shapes that are each a blend of both are nearly as close to the noise's
target as the right ones. So a world may say what each patch of its pictures shows, which a head must tell from the
middle of the transformer; it is left out of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dgpo.run import checkpoint
from dgpo.utils.files import save_tensors, share
from dgpo.worlds.pretraining.optimise import Pretrain, optimise

EMPTY_T5_TOKENS, EMPTY_T5_EVERY = 256, 64
LATENT_NOISE = 0.05
Some = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def prepare_autoencoder(vae: Any, some: Some, settings: Pretrain) -> None:
    """Trains the autoencoder, or loads an earlier run's.

    some: (n, generator) -> n images of the pool (n, 3, H, W) in [0, 1] and the colours of their grounds (n, 3)
    """
    if settings.autoencoder:
        vae.load_state_dict(load_file(Path(settings.autoencoder) / "autoencoder.safetensors"))
    else:
        _train_autoencoder(vae, some, settings)


def _train_autoencoder(vae: Any, some: Some, settings: Pretrain) -> None:
    """Weighted L1 on renders from noisy latents; each latent channel is held to mean 0 and deviation 1."""
    vae.to(memory_format=torch.channels_last)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        images, ground = some(settings.autoencoder_batch, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        weight = 1 + 4 * ((images - ground[:, :, None, None]).abs().amax(1, keepdim=True) > 0.02)
        latents = vae.encode(images * 2 - 1).latents
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        decoded = vae.decode(latents + LATENT_NOISE * noise).sample
        error = (weight * (decoded - (images * 2 - 1)).abs()).sum() / (3 * weight.sum())
        spread = latents.mean((0, 2, 3)).square() + (latents.std((0, 2, 3)) - 1).square()
        return error + 0.01 * spread.mean()

    modules = nn.ModuleDict({"vae": vae})
    optimise(modules, loss, "autoencoder", settings.autoencoder_steps, settings.autoencoder_lr, settings)
    save_tensors(
        {name: tensor.contiguous() for name, tensor in vae.state_dict().items()},
        Path(settings.out) / "autoencoder.safetensors",
    )


@torch.no_grad()
def encode_pool(vae: Any, chunks: Iterable[Tensor]) -> Tensor:
    """Latent means of all images (N, C, h, w), scaled by the statistics that are then the autoencoder's config."""
    latents = torch.cat([vae.encode(images * 2 - 1).latents for images in chunks])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 6), scaling_factor=round(scale, 6))
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def train_flow(
    pipe: StableDiffusion3Pipeline,
    prompts: list[str],
    caption: Callable[[Tensor, torch.Generator, bool], Tensor],
    latents: Tensor,
    settings: Pretrain,
    shown: Tensor | None = None,
) -> None:
    """Flow matching of the transformer and both text encoders, at the end the EMA of their weights.

    caption: rows of the pool (n,) -> index into `prompts` (n,), by which their pictures are called this time; the flag
        says whether it may be wrong
    shown: (N, patches) int64, what each patch of each picture shows, from 0; for `patch_weight`
    """
    if settings.start:
        start_from(pipe, settings.start)
    device = latents.device
    tokens = tokenise(pipe, prompts).to(device)
    modules = nn.ModuleDict({name: getattr(pipe, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    middle: list[Tensor] = []
    block = pipe.transformer.transformer_blocks[settings.layers // 2 - 1]
    hook = block.register_forward_hook(lambda module, given, tokens: middle.append(tokens[1]))
    if settings.patch_weight and shown is not None:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            modules["patches"] = nn.Linear(settings.width, int(shown.max()) + 1).to(device)
    compiled = torch.compile(pipe.transformer) if settings.compile else pipe.transformer

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = draw_rows(len(latents), settings.flow_batch, generator)
        called = caption(index, generator, step >= settings.right_steps)
        drop = torch.rand(len(index), generator=generator, device=device) < settings.caption_dropout
        embeds, pooled = embed(pipe, tokens[torch.where(drop, len(prompts), called)])
        network = compiled
        if step % EMPTY_T5_EVERY == 0:
            network = pipe.transformer
            embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), EMPTY_T5_TOKENS, embeds.shape[-1])], dim=1)
        x0 = latents[index].float()
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.sigmoid(settings.t_mean + 1.2 * torch.randn(len(x0), generator=generator, device=device))
        x_t = torch.lerp(x0, noise, t[:, None, None, None])
        middle.clear()
        v = network(x_t, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=1000 * t).sample
        error = (v.float() - (noise - x0)).square().mean()
        if settings.patch_weight and shown is not None:
            told = modules["patches"](middle[0]).float().flatten(0, 1)
            error = error + settings.patch_weight * nn.functional.cross_entropy(told, shown[index].flatten())
        return error

    optimise(modules, loss, "flow", settings.flow_steps, settings.flow_lr, settings, settings.right_steps)
    hook.remove()
    if settings.overshoot:
        go_on(modules, Path(settings.out) / "flow", settings.right_steps, settings.overshoot)


@torch.no_grad()
def go_on(modules: nn.Module, states: Path, step: int, share: float) -> None:
    """Move the weights on by a share of their way since the averaged weights after `step`."""
    [path] = [path for path in checkpoint.list_checkpoints(states) if checkpoint.iteration_of(path) == step]
    before = checkpoint.load(path)[0]["average"]
    for name, parameter in modules.named_parameters():
        parameter.add_(parameter - before[name].to(parameter), alpha=share)


def start_from(pipe: StableDiffusion3Pipeline, folder: str) -> None:
    """Take transformer and text encoders of a pipeline folder. Layers that it has not are identities: gates of zero."""
    absent: Any = {"text_encoder_3": None, "tokenizer_3": None}
    earlier = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **absent).to(torch.float32)
    blocks, old_blocks = pipe.transformer.transformer_blocks, earlier.transformer.transformer_blocks
    places = [round(i * (len(blocks) - 1) / (len(old_blocks) - 1)) for i in range(len(old_blocks))]
    with torch.no_grad():
        for block in [blocks[i] for i in range(len(blocks)) if i not in places]:
            for norm in (block.norm1, block.norm1_context):
                norm.linear.weight.zero_()
                norm.linear.bias.zero_()
    for place, old in zip(places, old_blocks):
        blocks[place].load_state_dict(old.state_dict())
    rest = {k: v for k, v in earlier.transformer.state_dict().items() if not k.startswith("transformer_blocks")}
    pipe.transformer.load_state_dict(rest, strict=False)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(pipe, name).load_state_dict(getattr(earlier, name).state_dict())


def embed(pipe: StableDiffusion3Pipeline, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (n, 16) -> prompt_embeds (n, 16, D), pooled (n, P): what `encode_prompt` makes of them without T5."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    embeds = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
    return embeds, torch.cat([o.text_embeds for o in outputs], dim=-1)


def tokenise(pipe: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    """Token ids (len(texts) + 1, 16); the last row is the empty prompt."""
    return pipe.tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids


def write_pipeline(pipe: StableDiffusion3Pipeline, tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Transformer and autoencoder in fp16. The text encoders stay fp32: transformers loads them as they are stored.

    tokenizer: a new one; one that has been used saves how it padded
    """
    pipe.tokenizer = pipe.tokenizer_2 = tokenizer
    pipe.to("cpu").save_pretrained(folder)
    pipe.transformer.half().save_pretrained(folder / "transformer")
    pipe.vae.half().save_pretrained(folder / "vae")
    share(folder)
    return folder


def draw_rows(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows (count,) of `size`, with replacement."""
    return torch.randint(size, (count,), generator=generator, device=generator.device)
