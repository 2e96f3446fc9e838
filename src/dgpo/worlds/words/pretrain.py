"""Pretrains `tiny-sd3-words` on the words world, as worlds/pretraining/ says, with the captions of captions.py.

    python -m dgpo.worlds.words.pretrain --out runs/tiny-sd3-words --device cuda

It can be stopped and started again: the state is saved every `--save-every` steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from torch import Tensor

from dgpo.worlds.common.ground import TINTS, palette
from dgpo.worlds.common.tokenizer import byte_tokenizer
from dgpo.worlds.pretraining.optimise import Pretrain
from dgpo.worlds.pretraining.pipeline import build_pipeline
from dgpo.worlds.pretraining.stages import draw_rows, encode_pool, prepare_autoencoder, train_flow, write_pipeline
from dgpo.worlds.words.captions import WRONG, captions, word_index
from dgpo.worlds.words.prompts import all_words, prompt, spell
from dgpo.worlds.words.render import Pictures, draw, render
from dgpo.worlds.words.vocabulary import LENGTHS

DEFAULT = Pretrain(
    out="runs/tiny-sd3-words",
    pool=40_000,
    autoencoder_steps=1600,
    autoencoder_batch=16,
    flow_steps=12_000,
    flow_batch=64,
    right_steps=9_750,
)
"""How the model in the package was made, but for its first steps (its model card)."""


def main(settings: Pretrain) -> Path:
    """Runs both stages and writes a StableDiffusion3Pipeline folder to OUT/pipeline, weights in fp16."""
    device, out = torch.device(settings.device), Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    pipe = build_pipeline(byte_tokenizer([]), settings.seed, settings.width, settings.layers).to(device)
    pictures = _pool(settings)
    tints = palette(TINTS, device)
    wrong = min(1.0, WRONG * settings.wrong_scale)

    def some(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = pictures.rows(draw_rows(settings.pool, count, generator))
        return render(picked), tints[picked.tint]

    prepare_autoencoder(pipe.vae, some, settings)
    latents = encode_pool(
        pipe.vae, (render(Pictures(*chunk)) for chunk in zip(*(part.split(500) for part in pictures)))
    )
    train_flow(
        pipe,
        [prompt(word) for length in LENGTHS for word in all_words(length)],
        lambda index, generator, may: word_index(captions(pictures.letters[index], generator, wrong * may)),
        latents,
        settings,
    )
    return write_pipeline(pipe, byte_tokenizer([]), out / "pipeline")


def _pool(settings: Pretrain) -> Pictures:
    """Words of all lengths in equal shares."""
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    words = [spell(all_words(length)).to(settings.device) for length in LENGTHS]
    of_length = torch.stack(
        [w[torch.randint(len(w), (settings.pool,), generator=generator, device=settings.device)] for w in words]
    )
    length = torch.randint(len(LENGTHS), (settings.pool,), generator=generator, device=settings.device)
    return draw(of_length[length, torch.arange(settings.pool, device=settings.device)], generator)


if __name__ == "__main__":
    print(main(tyro.cli(Pretrain, default=DEFAULT)))
