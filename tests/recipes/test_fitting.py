"""Recipes fit the GPU that they are for: bytes counted by `dgpo plan` on the published shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import published  # pyright: ignore[reportMissingImports]
import pytest

from dgpo.plan.estimates import estimate
from dgpo.plan.fitting import GIB, needs, room
from dgpo.plan.gpus import find_gpu
from dgpo.recipes import recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gpu", "billions", "gib"),
    [
        ("sd35l@24gb", "RTX 4090", 8.06, 20.8),
        ("flux_dev@24gb", "RTX 4090", 11.90, 17.1),
        ("qwen_image@80gb", "A100-80", 20.43, 50.4),
    ],
)
def test_a_recipe_fits_its_gpu(name: str, gpu: str, billions: float, gib: float, tmp_path: Path) -> None:
    folder = getattr(published, name.partition("@")[0])(tmp_path)
    found = estimate(replace(recipe(name), model=str(folder)), 1, False, "a cat")
    assert not found.unknown
    assert {part.name: part.parameters / 1e9 for part in found.parts}["transformer"] == pytest.approx(
        billions, abs=0.005
    )
    assert needs(found) < room(find_gpu(gpu), on_cpu=False)[0]
    assert needs(found) / GIB == pytest.approx(gib, abs=0.1), "what docs/models.md says"
