"""What tests of several modules share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from diffusers.utils import logging

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "models")]
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny random pipeline that `load_model` reads in a moment."""
    from runs import save_pipeline

    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")
