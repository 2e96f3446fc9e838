from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline
from diffusers.utils import logging
from tiny import save_tiny_sd3

from dgpo.models import load_model

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny pipeline."""
    return save_tiny_sd3(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def load(folder: Path) -> Callable[..., Any]:
    """load_model on the tiny pipeline, with settings."""
    return lambda **settings: load_model(folder, device="cpu", **settings)


@pytest.fixture
def stock(folder: Path) -> Any:
    """The same pipeline as diffusers alone loads it."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
