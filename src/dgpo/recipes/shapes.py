"""Runs of the embedded model on the shapes world: no download, no GPU."""

from __future__ import annotations

from dgpo.algorithms import DGPO
from dgpo.config import Config, LoraConfig, Optimizer, Sampling


def tiny() -> Config:
    """The demo: two kinds of prompts, ten minutes on two CPU cores."""
    return _shapes("tiny", ("single_object", "colors"), iterations=60)


def shapes_all() -> Config:
    """All six kinds of prompts, hours on two CPU cores."""
    return _shapes("shapes_all", (), iterations=1000)


def _shapes(name: str, kinds: tuple[str, ...], iterations: int) -> Config:
    """t lies where shapes, colours and counts are decided: above, the gradient is mostly noise, below are details."""
    chosen = f":{','.join(kinds)}" if kinds else ""
    return Config(
        name=name,
        model="tiny-sd3",
        finetune="lora",
        iterations=iterations,
        prompts=f"shapes:train{chosen}",
        num_groups=12,
        group_size=12,
        rewards={"shapes": 0.5, "shapes_strict": 0.5},
        eval_rewards=("crispness", "diversity"),
        eval_prompts={split: f"shapes:{split}{chosen}" for split in ("seen", "unseen")},
        eval_images_per_prompt=6,
        eval_every=12,
        checkpoint_every=12,
        algorithm=DGPO(
            beta=100.0,
            kl_coef=0.02,
            clip_range=None,
            num_points=4,
            t_sampling="stratified",
            t_min=0.6,
            t_max=0.85,
            shared_t=False,
            sampling_switch=10**6,
        ),
        sampling=Sampling(num_inference_steps=10, guidance_scale=1.0),
        optimizer=Optimizer(lr=2e-3, weight_decay=0.0, ema_decay=0.9),
        lora=LoraConfig(rank=32, alpha=64),
    )
