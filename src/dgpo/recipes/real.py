"""Runs of published models.

`sd35m_*` have the settings that the authors published for SD3.5-M in their three modes; PickScore without guidance,
which they did not publish, has those of its mode and of its guided run. The others carry these over to other models and
were never run on their real weights: expect to choose the rate and `kl_coef` anew. Prompts of GenEval and OCR are
our own lists, from templates; those of PickScore are files that you bring, one prompt a line. `--prompts FILE` takes
others, such as the authors'.

Memory is for one 80 GB GPU; `on_24_gb` and `on_8_gpus` are variants of any of them. `dgpo plan RECIPE` estimates it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dgpo.algorithms import DGPO
from dgpo.config import Config, LoraConfig, Optimizer, Sampling

HELD_OUT = ("pixel_diversity", "jpeg_incompressibility")
"""What a policy gives up first, variety and detail, measured without any weights, so that an alarm can tell."""
_FLUX = "black-forest-labs/FLUX.1-dev"
_LORA = LoraConfig(rank=64, alpha=128)
_OPTIMIZER = Optimizer(lr=3e-4, weight_decay=1e-4, ema_decay=0.987)  # theirs is .9 in every eighth step


def sd35m_ocr() -> Config:
    """Text rendering, guided rollouts."""
    return _sd35m("sd35m_ocr", "ocr", DGPO(beta=100.0, kl_coef=0.02, clip_range=1e-2, trunc_steps=6))


def sd35m_geneval() -> Config:
    """Composition, guided rollouts; fewer noise levels, the deviation of each group."""
    algorithm = DGPO(beta=100.0, kl_coef=0.02, clip_range=1e-2, trunc_steps=4, std="group", sampling_switch=500)
    return _sd35m("sd35m_geneval", "geneval", algorithm)


def sd35m_pickscore() -> Config:
    """Human preference, guided rollouts; groups of 24."""
    algorithm = DGPO(beta=10.0, kl_coef=1e-3, clip_range=5e-2, trunc_steps=6)
    return replace(_sd35m("sd35m_pickscore", "pickscore", algorithm), group_size=24)


def sd35m_ocr_cfg_free() -> Config:
    """Text rendering without guidance, measured against the guided frozen reference."""
    algorithm = DGPO(beta=100.0, kl_coef=0.02, clip_range=1e-3, trunc_steps=6, ref_guidance_scale=4.5)
    return _without_guidance(_sd35m("sd35m_ocr_cfg_free", "ocr", algorithm))


def sd35m_geneval_cfg_free() -> Config:
    """Composition without guidance, measured against the guided frozen reference."""
    algorithm = DGPO(
        beta=100.0,
        kl_coef=0.02,
        clip_range=1e-3,
        trunc_steps=4,
        std="group",
        sampling_switch=500,
        ref_guidance_scale=4.5,
    )
    return _without_guidance(_sd35m("sd35m_geneval_cfg_free", "geneval", algorithm))


def sd35m_pickscore_cfg_free() -> Config:
    """Human preference without guidance, measured against the guided frozen reference; groups of 24."""
    algorithm = DGPO(beta=100.0, kl_coef=1e-3, clip_range=1e-3, trunc_steps=6, ref_guidance_scale=4.5)
    return replace(_without_guidance(_sd35m("sd35m_pickscore_cfg_free", "pickscore", algorithm)), group_size=24)


def sd35m_ocr_dynamic() -> Config:
    """Text rendering without guidance, measured against `old`, which follows the policy."""
    algorithm = DGPO(beta=2000.0, kl_coef=1e-3, clip_range=1e-5, trunc_steps=6, reference="old")
    return _without_guidance(_sd35m("sd35m_ocr_dynamic", "ocr", algorithm))


def sd35m_geneval_dynamic() -> Config:
    """Composition without guidance, measured against `old`, which follows the policy."""
    algorithm = DGPO(
        beta=2000.0,
        kl_coef=1e-3,
        clip_range=1e-5,
        trunc_steps=4,
        std="group",
        sampling_switch=500,
        reference="old",
    )
    return _without_guidance(_sd35m("sd35m_geneval_dynamic", "geneval", algorithm))


def sd35m_pickscore_dynamic() -> Config:
    """Human preference without guidance, measured against `old`, which follows the policy; groups of 24."""
    algorithm = DGPO(beta=2000.0, kl_coef=1e-3, clip_range=1e-5, trunc_steps=6, reference="old")
    return replace(_without_guidance(_sd35m("sd35m_pickscore_dynamic", "pickscore", algorithm)), group_size=24)


def sd35l() -> Config:
    """Stable Diffusion 3.5 large. Not run on real weights."""
    return _untested("sd35l", "stabilityai/stable-diffusion-3.5-large", 4.5, micro_batch_size=4)


def flux_dev() -> Config:
    """FLUX.1 [dev], guidance-distilled: it is told 3.5 and no second row is sampled. Not run on real weights."""
    return _untested("flux_dev", _FLUX, 1.0, micro_batch_size=2, max_sequence_length=256)


def flux2_klein() -> Config:
    """FLUX.2 [klein] base 4B with true guidance; the distilled one takes 1. Not run on real weights."""
    return _untested("flux2_klein", "black-forest-labs/FLUX.2-klein-base-4B", 4.0, micro_batch_size=4)


def qwen_image() -> Config:
    """Qwen-Image with true guidance. Not run on real weights."""
    return _untested("qwen_image", "Qwen/Qwen-Image", 4.0, micro_batch_size=1)


def z_image() -> Config:
    """Z-Image; its scale 6 is what diffusers calls 5. Not run on real weights."""
    return _untested("z_image", "Tongyi-MAI/Z-Image", 6.0, micro_batch_size=4)


def sana() -> Config:
    """Sana 1.6B at 512 pixels. Not run on real weights."""
    return _untested("sana", "Efficient-Large-Model/Sana_1600M_512px_diffusers", 4.5)


def sdxl() -> Config:
    """Stable Diffusion XL, a noise-predicting U-Net in flow coordinates. Not run on real weights."""
    return replace(
        _untested("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 5.0, micro_batch_size=8),
        resolution=1024,
        sampling=Sampling(num_inference_steps=15, guidance_scale=5.0, eval_num_inference_steps=30, batch_size=8),
    )


def sd15() -> Config:
    """Stable Diffusion 1.5. Not run on real weights."""
    return replace(
        _untested("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", 7.5),
        sampling=Sampling(num_inference_steps=15, guidance_scale=7.5, eval_num_inference_steps=30, batch_size=16),
    )


def on_24_gb(config: Config) -> Config:
    """The same run on one 24 GB GPU: one image at a time, activations computed again, no encoders, 8-bit moments.

    FLUX.1's network, 22 GiB in bf16, is held in 8 bits. Qwen-Image does not fit: its text encoder alone takes more.
    """
    return replace(
        config,
        micro_batch_size=1,
        gradient_checkpointing=True,
        free_text_encoders=True,
        vae_slicing=True,
        base_precision="int8" if config.model == _FLUX else config.base_precision,
        sampling=replace(config.sampling, batch_size=4),
        optimizer=replace(config.optimizer, name="adamw8bit"),
    )


def on_80_gb(config: Config) -> Config:
    """The same run on one 80 GB GPU: at most four images at a time, activations computed again, no encoders."""
    return replace(
        config,
        micro_batch_size=min(4, config.micro_batch_size or 4),
        gradient_checkpointing=True,
        free_text_encoders=True,
        sampling=replace(config.sampling, batch_size=min(16, config.sampling.batch_size)),
    )


def on_8_gpus(config: Config) -> Config:
    """The same run for `torchrun --nproc_per_node 8`, with 24 groups in the place of 8: better, the authors say."""
    return replace(config, num_groups=3 * config.num_groups)


def _sd35m(name: str, reward: str, algorithm: DGPO) -> Config:
    return Config(
        name=name,
        model="stabilityai/stable-diffusion-3.5-medium",
        dtype="bf16",
        resolution=512,
        iterations=1000,
        prompts=_PROMPTS[reward].format("train"),
        num_groups=8,
        group_size=16,
        micro_batch_size=16,
        free_text_encoders=True,
        max_sequence_length=128,
        rewards={reward: 1.0},
        eval_rewards=HELD_OUT,
        eval_prompts={"test": _PROMPTS[reward].format("test")},
        eval_every=60,
        checkpoint_every=60,
        num_samples=16,
        algorithm=algorithm,
        # rollouts in ten steps, evaluations in forty, as in the paper
        sampling=Sampling(
            num_inference_steps=10, guidance_scale=4.5, eval_num_inference_steps=40, shift=3.0, batch_size=16
        ),
        optimizer=_OPTIMIZER,
        lora=_LORA,
    )


_PROMPTS = {"geneval": "geneval:{}", "ocr": "ocr:{}", "pickscore": "pickscore_{}.txt"}


def _without_guidance(config: Config) -> Config:
    return replace(config, sampling=replace(config.sampling, guidance_scale=1.0))


def _untested(name: str, model: str, guidance_scale: float, micro_batch_size: int = 16, **changes: Any) -> Config:
    """Composition with the settings of SD3.5-M, fewer images at a time."""
    config = replace(sd35m_geneval(), name=name, model=model, micro_batch_size=micro_batch_size)
    batch_size = max(1, min(16, 2 * micro_batch_size))
    sampling = replace(config.sampling, guidance_scale=guidance_scale, shift=None, batch_size=batch_size)
    changes = {"max_sequence_length": None, "gradient_checkpointing": True, **changes}
    return replace(config, sampling=sampling, **changes)
