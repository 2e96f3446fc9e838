"""A run of a small model that is to spell: text rendering, rewarded by OCR, without download and GPU.

t lies where the caption decides letters: the loss of a base model differs most between a right and a misspelt caption
at t of .6 to .85, hardly at .95 and .3. The run needs the OCR reader, pip install 'dgpo[ocr]'; docs/words.md tells of
the task.
"""

from __future__ import annotations

from dgpo.algorithms import DGPO
from dgpo.config import Config, LoraConfig, Optimizer, Sampling


def words() -> Config:
    """Words of two to four letters on the words world."""
    return Config(
        name="words",
        model="tiny-sd3-words",
        finetune="lora",
        iterations=48,
        prompts="words:train",
        num_groups=12,
        group_size=12,
        rewards={"ocr": 1.0},
        eval_rewards=("legibility", "words_diversity"),
        eval_prompts={split: f"words:{split}" for split in ("seen", "unseen")},
        eval_images_per_prompt=6,
        num_samples=24,
        eval_every=16,
        checkpoint_every=16,
        algorithm=DGPO(
            beta=100.0,
            kl_coef=0.03,
            clip_range=None,
            num_points=4,
            t_sampling="stratified",
            t_min=0.55,
            t_max=0.85,
            shared_t=False,
            sampling_switch=10**6,
        ),
        sampling=Sampling(num_inference_steps=10, guidance_scale=1.0),
        optimizer=Optimizer(lr=1.5e-3, weight_decay=0.0, ema_decay=0.9, decay_steps=48),
        lora=LoraConfig(rank=32, alpha=64),
    )
