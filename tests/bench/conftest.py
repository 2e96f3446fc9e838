"""What the tests of the benchmark share."""

from __future__ import annotations

import pytest
from trained import Trained

from dgpo.bench import run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    stand_in = Trained()
    monkeypatch.setattr(run, "train", stand_in)
    return stand_in
