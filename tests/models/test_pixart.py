from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
from parity import PROMPTS
from peft import PeftModel
from tiny_vp import LINEAR, assert_stock_pictures, both, perturb, tiny_pixart

from dgpo.errors import UserError
from dgpo.models.pixart import PixArtSigma

CALL = {"clean_caption": False, "use_resolution_binning": False}


def test_the_scheduler_of_the_published_model(tmp_path):
    stock, model = both(tmp_path, tiny_pixart(DPMSolverMultistepScheduler(**LINEAR)))
    assert_stock_pictures(stock, model, 4.5, num_steps=6, solver="dpm_solver_pp_2m", **CALL)


@pytest.mark.slow
def test_a_network_without_learned_variances(tmp_path):
    stock, model = both(tmp_path, tiny_pixart(out_channels=4))
    assert_stock_pictures(stock, model, 1.0, **CALL)


def test_micro_conditions_are_those_of_pixart_alpha(tmp_path):
    """Its pipeline has them; that of PixArt-Sigma fails on such a network."""
    settings = {"sample_size": 128, "use_additional_conditions": True, "attention_head_dim": 12}
    stock, model = both(tmp_path, tiny_pixart(**settings), resolution=64)
    stock = PixArtAlphaPipeline(**stock.components)
    stock.set_progress_bar_config(disable=True)
    assert_stock_pictures(stock, model, 4.5, **CALL)


def test_padding_is_cut_off_and_comes_back_masked_where_rows_meet(tmp_path):
    _, model = both(tmp_path, tiny_pixart())
    rows = [model.encode([prompt]) for prompt in PROMPTS]
    lengths = [len(row.tensors["mask"][0]) for row in rows]
    assert len(set(lengths)) == 3
    assert max(lengths) < 30
    assert rows[0].cat(rows[2]).tensors["mask"].sum(1).tolist() == [lengths[0], lengths[2]]
    torch.testing.assert_close(rows[0].cat(*rows[1:]).tensors["mask"], model.encode(PROMPTS).tensors["mask"])


def test_a_long_prompt_is_cut_where_it_is_told(tmp_path):
    stock, model = both(tmp_path, tiny_pixart(), max_sequence_length=8)
    assert model.encode(PROMPTS).tensors["mask"].shape == (3, 8)
    assert_stock_pictures(stock, model, 4.5, max_sequence_length=8, **CALL)
    with pytest.raises(UserError, match="max_sequence_length=0"):
        PixArtSigma(stock, max_sequence_length=0)


def test_an_exported_lora_can_be_merged_into_the_stock_network(tmp_path):
    stock, model = both(tmp_path, tiny_pixart())
    perturb(model.weights)
    model.weights.export(tmp_path / "lora", "policy")
    stock.transformer = PeftModel.from_pretrained(stock.transformer, tmp_path / "lora")
    stock.transformer = stock.transformer.merge_and_unload()
    assert_stock_pictures(stock, model, 4.5, **CALL)
