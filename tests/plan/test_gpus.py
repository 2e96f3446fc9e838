"""GPUs by name."""

from __future__ import annotations

import pytest

from dgpo.errors import UserError
from dgpo.plan.gpus import GPUS, find_gpu


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("H100", "H100"),
        ("h100", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("3090", "RTX 3090"),
        ("a100_80gb", "A100-80"),
        ("A100 40GB", "A100-40"),
        ("l40s", "L40S"),
        ("L4", "L4"),
    ],
)
def test_a_gpu_is_found_however_it_is_spelt(given: str, name: str) -> None:
    assert find_gpu(given).name == name


@pytest.mark.parametrize(("given", "near"), [("H10", "H100"), ("rtx 4080", "RTX 4090"), ("A100", "A100-")])
def test_an_unknown_gpu_is_told_the_nearest(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{near}.*Known: RTX 3090, RTX 4090, L4"):
        find_gpu(given)


def test_every_gpu_is_found_by_its_own_name_and_is_faster_in_bf16() -> None:
    for gpu in GPUS:
        assert find_gpu(gpu.name) is gpu
        assert gpu.peak("bf16") > 1.9 * gpu.peak("fp32")
