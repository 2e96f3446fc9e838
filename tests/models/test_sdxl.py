from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny_vp import SD, ZERO_SNR, assert_stock_pictures, both, ddim, stock_noise, tiny_sdxl


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(timestep_spacing="leading", **SD), ddim(**ZERO_SNR)])
def test_the_schedulers_of_published_models(tmp_path, scheduler):
    """The base model's, and that of v prediction with zero terminal SNR; Euler's starts from unit noise as well."""
    assert_stock_pictures(*both(tmp_path, tiny_sdxl(scheduler)), 4.5)


@pytest.mark.parametrize("force_zeros", [True, False])
def test_the_empty_prompt_is_zeros_only_where_the_pipeline_says_so(tmp_path, force_zeros):
    stock, model = both(tmp_path, tiny_sdxl(force_zeros_for_empty_prompt=force_zeros))
    empty, cat = model.encode(["", "a cat"])[:1], model.encode(["", "a cat"])[1:]
    assert not (force_zeros and any(tensor.any() for tensor in empty.tensors.values()))
    assert force_zeros or all(tensor.any() for tensor in empty.tensors.values())
    assert all(tensor.any() for tensor in cat.tensors.values())
    if not force_zeros:
        assert_stock_pictures(stock, model, 4.5)


@pytest.mark.slow
def test_pooled_text_and_size_are_conditions(tmp_path):
    _, model = both(tmp_path, tiny_sdxl())
    x, t, cond = stock_noise(model), torch.tensor([0.9, 0.5, 0.2]), model.encode(["a red cat"] * 3)
    with torch.no_grad():
        v = model.velocity(x, t, cond)
        cond.tensors["pooled"].zero_()
        assert (model.velocity(x, t, cond) - v).abs().max() > 0.01
        v = model.velocity(x, t, cond)
        model.pipeline.vae_scale_factor = 16
        assert (model.velocity(x, t, cond) - v).abs().max() > 0.01
