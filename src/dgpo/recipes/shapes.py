"""Runs of the embedded model on the shapes world: no download, no GPU.

t lies where what is asked for is decided: above, the gradient is mostly noise, below are details. Places and counts are
decided nearer to noise than colours, and which of two shapes is where, if neither place nor colour says so, last
(benchmarks/signal_by_t.py).
"""

from __future__ import annotations

from dataclasses import replace

from dgpo.algorithms import DGPO
from dgpo.config import Config, LoraConfig, Optimizer, Sampling


def tiny() -> Config:
    """The demo: three kinds of prompts, minutes on a laptop.

    The paper's mode without guidance: only the reference is guided, and the KL leads the policy to what guidance draws.
    That goes fast, for its gradient has little noise; rewards do the rest. Many small updates, pictures drawn in six
    steps, and half of them trained, the best and the worst, make most of each network forward. Prompts that are solved
    would be a third of all groups soon: others are drawn in their place. Losses are divided by their size, so that
    noisy levels weigh less, and no group is switched off (beta = 1). The rate hardly falls in a run as short as this
    one; the averaged weights take its noise out.
    """
    config = _shapes(
        "tiny",
        ("colors", "position", "color_attr"),
        iterations=45,
        eval_every=15,
        num_points=4,
        t=(0.6, 0.93),
        beta=1.0,
        self_normalized=True,
        kl_coef=1.2,
        ref_guidance_scale=2.0,
        optimizer=Optimizer(lr=4e-3, decay_steps=200, weight_decay=0.0, ema_decay=0.9),
    )
    sampling = replace(config.sampling, num_inference_steps=6, eval_num_inference_steps=10)
    return replace(config, num_groups=6, train_images=6, drop_equal_groups=True, redraw_groups=1, sampling=sampling)


def shapes_all() -> Config:
    """All six kinds of prompts, hours on two CPU cores. Groups that are right throughout need no update, ever more.

    Evaluations take twice the solver's steps, as the papers' do with more: pictures drawn so follow prompts better.
    """
    config = _shapes(
        "shapes_all",
        (),
        iterations=340,
        eval_every=40,
        num_points=8,
        t=(0.4, 0.97),
        kl_coef=0.02,
        optimizer=Optimizer(lr=2e-3, decay_steps=340, weight_decay=0.0, ema_decay=0.97),
    )
    return replace(config, drop_equal_groups=True, sampling=replace(config.sampling, eval_num_inference_steps=20))


def _shapes(
    name: str,
    kinds: tuple[str, ...],
    *,
    iterations: int,
    eval_every: int,
    num_points: int,
    t: tuple[float, float],
    kl_coef: float,
    optimizer: Optimizer,
    beta: float = 100.0,
    ref_guidance_scale: float = 1.0,
    self_normalized: bool = False,
) -> Config:
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
        num_samples=24,
        eval_every=eval_every,
        checkpoint_every=12,
        algorithm=DGPO(
            beta=beta,
            kl_coef=kl_coef,
            ref_guidance_scale=ref_guidance_scale,
            self_normalized=self_normalized,
            clip_range=None,
            num_points=num_points,
            t_sampling="stratified",
            t_min=t[0],
            t_max=t[1],
            shared_t=False,
            sampling_switch=10**6,
        ),
        sampling=Sampling(num_inference_steps=10, guidance_scale=1.0),
        optimizer=optimizer,
        lora=LoraConfig(rank=32, alpha=64),
    )
