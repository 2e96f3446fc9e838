"""Every recipe is a whole, valid config that survives its YAML, and says what the authors published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dgpo import DGPO, UserError
from dgpo.config import Config, from_dict, load_yaml, save_yaml, to_dict
from dgpo.models import FAMILIES
from dgpo.recipes import RECIPES, VARIANTS, recipe
from dgpo.recipes.teaching import for_teaching
from dgpo.rewards.registry import BUILT_IN


@pytest.mark.parametrize("name", [*RECIPES, *(f"sdxl@{variant}" for variant in VARIANTS)])
def test_a_recipe_survives_its_yaml(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.name == name.partition("@")[0]
    assert from_dict(to_dict(config)) == config
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config


FILES = {"": "dgpo.py", "_cfg_free": "dgpo_wocfg.py", "_dynamic": "dgpo_wocfg_emaref.py"}
"""Ending of a recipe's name -> the authors' file of that mode in config/ of github.com/Luo-Yihong/DGPO, at 01ceb4b."""

AUTHORS = {  # file: reward: their values; PickScore has a preset with guidance only
    "dgpo.py": {
        "ocr": {"train.beta_dpo": 100, "train.beta": 0.02, "clip_range": 1e-2, "trunc_steps": 6},
        "geneval": {"train.beta_dpo": 100, "train.beta": 0.02, "clip_range": 1e-2, "trunc_steps": 4},
        "pickscore": {"train.beta_dpo": 10, "train.beta": 0.001, "clip_range": 5e-2, "trunc_steps": 6},
    },
    "dgpo_wocfg.py": {
        "ocr": {"train.beta_dpo": 100, "train.beta": 0.02, "clip_range": 1e-3, "trunc_steps": 6},
        "geneval": {"train.beta_dpo": 100, "train.beta": 0.02, "clip_range": 1e-3, "trunc_steps": 4},
    },
    "dgpo_wocfg_emaref.py": {
        "ocr": {"train.beta_dpo": 2000, "train.beta": 0.001, "clip_range": 1e-5, "trunc_steps": 6},
        "geneval": {"train.beta_dpo": 2000, "train.beta": 0.001, "clip_range": 1e-5, "trunc_steps": 4},
    },
}
OF_THE_MODE = {
    "dgpo.py": {"sample.guidance_scale": 4.5, "kl_cfg": 1.0, "use_ema_ref": False},
    "dgpo_wocfg.py": {"sample.guidance_scale": 1.0, "kl_cfg": 4.5, "use_ema_ref": False},
    "dgpo_wocfg_emaref.py": {"sample.guidance_scale": 1.0, "kl_cfg": 1.0, "use_ema_ref": True},
}
OF_THE_REWARD = {
    "ocr": {"sample.global_std": True, "sample.num_image_per_prompt": 16, "switch_ema_ref": 200},
    "geneval": {"sample.global_std": False, "sample.num_image_per_prompt": 16, "switch_ema_ref": 500},
    "pickscore": {"sample.global_std": True, "sample.num_image_per_prompt": 24, "switch_ema_ref": 200},
}
OF_ALL = {  # config/base.py, or the same in every preset, or written into scripts/train_sd3_dgpo.py
    "pretrained.model": "stabilityai/stable-diffusion-3.5-medium",
    "mixed_precision": "bf16",
    "resolution": 512,
    "num_groups": 8,
    "sample.num_steps": 10,
    "flow_shift": 3,
    "use_dpm": True,
    "sample.noise_level": 0,
    "num_train_timesteps": 4,
    "use_shared_noise": True,
    "clip_dsm": True,
    "clip_kl": False,
    "train.adv_clip_max": 5,
    "train.learning_rate": 3e-4,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "train.adam_epsilon": 1e-8,
    "train.adam_weight_decay": 1e-4,
    "train.max_grad_norm": 1.0,
    "train.num_inner_epochs": 1,
    "train.use_8bit_adam": False,
    "use_lora": True,
    "save_freq": 60,
    "eval_freq": 60,
    "max_sequence_length": 128,
    "LoraConfig.r": 64,
    "LoraConfig.lora_alpha": 128,
    "LoraConfig.init_lora_weights": "gaussian",
    "ema_ref decay": (0.001, 0.3),  # min(0.3, 0.001 * step)
    "ema decay in 8 steps": 0.9,
}


def in_their_words(config: Config) -> dict[str, object]:
    """A config by the names of the authors' settings."""
    a, o = config.algorithm, config.optimizer
    assert isinstance(a, DGPO)
    assert (a.shared_t, a.t_sampling) == (True, "grid")
    return {
        "train.beta_dpo": a.beta,
        "train.beta": a.kl_coef,
        "clip_range": a.clip_range,
        "trunc_steps": a.trunc_steps,
        "sample.guidance_scale": config.sampling.guidance_scale,
        "kl_cfg": a.ref_guidance_scale,
        "use_ema_ref": a.reference == "old",
        "sample.global_std": a.std == "batch",
        "sample.num_image_per_prompt": config.group_size,
        "switch_ema_ref": a.sampling_switch,
        "pretrained.model": config.model,
        "mixed_precision": config.dtype,
        "resolution": config.resolution,
        "num_groups": config.num_groups,
        "sample.num_steps": config.sampling.num_inference_steps,
        "flow_shift": config.sampling.shift,
        "use_dpm": config.sampling.solver == "dpm_solver_pp_2m",
        "sample.noise_level": 0 if a.sampler(0, 10, torch.Generator()) is None else 1,
        "num_train_timesteps": a.num_points,
        "use_shared_noise": a.shared_noise,
        "clip_dsm": a.clip_range is not None,
        "clip_kl": False,  # there is no such setting
        "train.adv_clip_max": a.advantage_clip,
        "train.learning_rate": o.lr,
        "train.adam_beta1": o.betas[0],
        "train.adam_beta2": o.betas[1],
        "train.adam_epsilon": o.eps,
        "train.adam_weight_decay": o.weight_decay,
        "train.max_grad_norm": o.max_grad_norm,
        "train.num_inner_epochs": config.updates_per_rollout,
        "train.use_8bit_adam": o.name == "adamw8bit",
        "use_lora": config.finetune == "lora",
        "save_freq": config.checkpoint_every,
        "eval_freq": config.eval_every,
        "max_sequence_length": config.max_sequence_length,
        "LoraConfig.r": config.lora.rank,
        "LoraConfig.lora_alpha": config.lora.alpha,
        "LoraConfig.init_lora_weights": config.lora.init,
        "ema_ref decay": (a.old_decay_rate, a.old_max_decay),
        "ema decay in 8 steps": round(o.ema_decay**8, 2),
    }


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("reward", OF_THE_REWARD)
def test_the_authors_settings(reward: str, ending: str) -> None:
    """Every setting of theirs that there is here. Evaluations draw 40 steps, as in the paper, and not 10 or 14."""
    file = FILES[ending]
    preset = AUTHORS[file].get(reward)
    if preset is None:  # ours: those of its mode, with the KL and the noise levels of its guided run
        of_its_mode = AUTHORS[file]["ocr"]
        guided = AUTHORS["dgpo.py"][reward]
        preset = {**of_its_mode, "train.beta": guided["train.beta"], "trunc_steps": guided["trunc_steps"]}
    theirs = {**OF_ALL, **OF_THE_MODE[file], **OF_THE_REWARD[reward], **preset}
    assert in_their_words(recipe(f"sd35m_{reward}{ending}")) == theirs
    assert recipe(f"sd35m_{reward}{ending}").sampling.eval_num_inference_steps == 40


def test_every_family_but_pixart_has_a_recipe() -> None:
    families = {"sd35l", "flux_dev", "flux2_klein", "qwen_image", "z_image", "sana", "sdxl", "sd15"}
    assert families <= set(RECIPES)
    assert len(families) == len(FAMILIES) - 1


def test_variants_change_memory_or_groups_and_not_the_method() -> None:
    for name in ("sd35m_ocr", "flux_dev"):
        base, small, spread = recipe(name), recipe(f"{name}@24gb"), recipe(f"{name}@8gpus")
        large = recipe(f"{name}@80gb")
        assert base.algorithm == small.algorithm == large.algorithm == spread.algorithm
        assert (large.num_groups, large.group_size) == (base.num_groups, base.group_size)
        assert 1 <= (large.micro_batch_size or 0) <= min(4, base.micro_batch_size or 4)
        assert (small.micro_batch_size, small.optimizer.name, small.num_groups) == (1, "adamw8bit", base.num_groups)
        assert spread.num_groups == 24


def test_unknown_names_are_told() -> None:
    with pytest.raises(UserError, match="Did you mean 'sd35m_ocr'"):
        recipe("sd35m_orc")
    with pytest.raises(UserError, match=r"there is no variant '24g' of a recipe\. Did you mean '24gb'"):
        recipe("tiny@24g")


@pytest.mark.parametrize("name", RECIPES)
def test_in_every_recipe_an_alarm_can_fire_without_further_weights(name: str) -> None:
    config = recipe(name)
    assert set(config.eval_rewards) - set(config.rewards)
    assert config.eval_every
    assert config.eval_prompts
    assert config.eval_images_per_prompt > 1
    for reward in config.eval_rewards:
        module = BUILT_IN[reward].partition(":")[0]
        assert module in (
            "dgpo.rewards.builtin.shapes",
            "dgpo.rewards.builtin.words",
            "dgpo.rewards.builtin.simple",
            "dgpo.rewards.builtin.diversity",
        )
    assert not {"clip_diversity"} & set(config.eval_rewards)


def test_the_docs_say_of_each_recipe_what_it_was_run_on() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("## What each recipe was run on")[2].partition("\n\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(RECIPES)


@pytest.mark.parametrize("name", sorted({*RECIPES} - {*VARIANTS}))
def test_people_teach_with_the_loss_that_was_measured_with_them(name: str) -> None:
    config = recipe(name)
    algorithm = for_teaching(config).algorithm
    assert isinstance(algorithm, DGPO)
    assert (algorithm.self_normalized, algorithm.ref_guidance_scale) == (False, 1.0)
    assert algorithm.kl_coef >= 0.1
    if name == "tiny":
        assert (algorithm.beta, algorithm.kl_coef) == (100.0, 0.1), "not those of divided losses"
