"""Every recipe is a whole, valid config that survives its YAML, and says what the authors published."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo import DGPO, UserError
from dgpo.config import from_dict, load_yaml, save_yaml, to_dict
from dgpo.models import FAMILIES
from dgpo.recipes import RECIPES, VARIANTS, recipe
from dgpo.rewards.base import BUILT_IN

PUBLISHED = {  # reward: beta, kl_coef, clip_range, trunc_steps, std, group_size, sampling_switch of guided rollouts
    "ocr": (100, 0.02, 1e-2, 6, "batch", 16, 200),
    "geneval": (100, 0.02, 1e-2, 4, "group", 16, 500),
    "pickscore": (10, 1e-3, 5e-2, 6, "batch", 24, 200),
}


@pytest.mark.parametrize("name", [*RECIPES, *(f"sdxl@{variant}" for variant in VARIANTS)])
def test_a_recipe_survives_its_yaml(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.name == name.partition("@")[0]
    assert from_dict(to_dict(config)) == config
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("reward", "published"), PUBLISHED.items())
def test_the_authors_settings(reward: str, published: tuple[object, ...]) -> None:
    config = recipe(f"sd35m_{reward}")
    a = config.algorithm
    assert isinstance(a, DGPO)
    assert published == (a.beta, a.kl_coef, a.clip_range, a.trunc_steps, a.std, config.group_size, a.sampling_switch)
    assert (config.lora.rank, config.lora.alpha, config.lora.init) == (64, 128, "gaussian")
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.max_grad_norm) == (3e-4, 1e-4, 1.0)
    assert (config.sampling.guidance_scale, config.sampling.num_inference_steps, config.resolution) == (4.5, 10, 512)
    assert (a.num_points, a.t_sampling, a.shared_noise, a.shared_t) == (4, "grid", True, True)
    assert config.updates_per_rollout == 1


@pytest.mark.parametrize("reward", PUBLISHED)
def test_the_modes_without_guidance(reward: str) -> None:
    frozen, dynamic = recipe(f"sd35m_{reward}_cfg_free"), recipe(f"sd35m_{reward}_dynamic")
    assert frozen.sampling.guidance_scale == dynamic.sampling.guidance_scale == 1
    assert isinstance(frozen.algorithm, DGPO)
    assert isinstance(dynamic.algorithm, DGPO)
    assert (frozen.algorithm.reference, frozen.algorithm.ref_guidance_scale) == ("ref", 4.5)
    assert (dynamic.algorithm.reference, dynamic.algorithm.ref_guidance_scale) == ("old", 1)
    assert 2000 <= dynamic.algorithm.beta <= 5000
    assert 1e-5 <= dynamic.algorithm.clip_range <= 1e-4
    assert frozen.group_size == dynamic.group_size == recipe(f"sd35m_{reward}").group_size


def test_every_family_but_pixart_has_a_recipe() -> None:
    families = {"sd35l", "flux_dev", "qwen_image", "z_image", "sana", "sdxl", "sd15"}
    assert families <= set(RECIPES)
    assert len(families) == len(FAMILIES) - 1


def test_variants_change_memory_or_groups_and_not_the_method() -> None:
    for name in ("sd35m_ocr", "flux_dev"):
        base, small, spread = recipe(name), recipe(f"{name}@24gb"), recipe(f"{name}@8gpus")
        assert base.algorithm == small.algorithm == spread.algorithm
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
        assert module in ("dgpo.rewards.shapes", "dgpo.rewards.words", "dgpo.rewards.simple", "dgpo.rewards.diversity")
    assert not {"clip_diversity"} & set(config.eval_rewards)
