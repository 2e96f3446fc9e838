"""Pretrains `tiny-sd3` on the shapes world, as worlds/pretraining/ says, with the captions of captions.py.

    python -m dgpo.worlds.shapes.pretrain --out runs/tiny-sd3 --device cuda

It can be stopped and started again: the state is saved every `--save-every` steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from torch import Tensor

from dgpo.worlds.common.ground import IMAGE_SIZE, TINTS, palette
from dgpo.worlds.pretraining.optimise import Pretrain
from dgpo.worlds.pretraining.pipeline import DOWNSAMPLING, PATCH, build_pipeline
from dgpo.worlds.pretraining.stages import draw_rows, encode_pool, prepare_autoencoder, train_flow, write_pipeline
from dgpo.worlds.shapes.captions import WRONG, Captions, build_captions, caption_rows, draw_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import Scenes, draw, requests
from dgpo.worlds.shapes.tokenizer import build_tokenizer
from dgpo.worlds.shapes.vocabulary import COLORS

DEFAULT = Pretrain(
    pool=40_000,
    flow_steps=16_000,
    flow_lr=5e-3,
    layers=6,
    patch_weight=0.2,
    t_mean=0.8,
    right_steps=13_000,
    wrong_scale=1.2,
    overshoot=0.2,
)
"""The settings that made the model in the package; it had not begun with them (its model card)."""


def main(settings: Pretrain) -> Path:
    """Runs both stages and writes a StableDiffusion3Pipeline folder to OUT/pipeline, weights in fp16."""
    device, out = torch.device(settings.device), Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    pipe = build_pipeline(build_tokenizer(), settings.seed, settings.width, settings.layers).to(device)
    captions = build_captions().to(device)
    rows, scenes = _pool(captions, settings)
    tints = palette(TINTS, device)
    right = dict.fromkeys(WRONG, 0.0)
    wrong = {kind: min(1.0, share * settings.wrong_scale) for kind, share in WRONG.items()}

    def some(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # each part is from another scene, as when tiny-sd3 was made: the autoencoder sees objects overlap as well
        picked = Scenes(*(part[draw_rows(len(rows), count, generator)] for part in scenes))
        return render(picked), tints[picked.tint]

    prepare_autoencoder(pipe.vae, some, settings)
    latents = encode_pool(pipe.vae, (render(Scenes(*chunk)) for chunk in zip(*(part.split(500) for part in scenes))))
    train_flow(
        pipe,
        [p["prompt"] for p in captions.prompts],
        lambda index, generator, may: caption_rows(captions, rows[index], generator, wrong if may else right),
        latents,
        settings,
        shown_by_patch(scenes),
    )
    return write_pipeline(pipe, build_tokenizer(), out / "pipeline")


def shown_by_patch(scenes: Scenes) -> Tensor:
    """(N, patches, row by row) int64: 0 for ground, else 1 + the shape and colour whose circle covers its middle."""
    side = PATCH * DOWNSAMPLING
    axis = torch.arange(side // 2, IMAGE_SIZE, side, device=scenes.center.device).float()
    middles = torch.cartesian_prod(axis, axis).flip(1)  # (patches, 2) as (x, y)
    inside = torch.cdist(scenes.center, middles.expand(len(scenes.shape), -1, -1)) < scenes.radius[:, :, None]
    names = 1 + scenes.shape * len(COLORS) + scenes.color
    return (inside * (names * (scenes.shape >= 0))[:, :, None]).amax(1)


def _pool(captions: Captions, settings: Pretrain) -> tuple[Tensor, Scenes]:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    rows = draw_prompts(captions, settings.pool, generator)
    wanted = requests(captions.prompts)
    return rows, draw(wanted.rows(rows.cpu()), generator)


if __name__ == "__main__":
    print(main(tyro.cli(Pretrain, default=DEFAULT)))
