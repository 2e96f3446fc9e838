"""What the tests of the CPU assume, once more on a GPU: `pytest tests/gpu`.

They are skipped where there is no CUDA. DGPO_TEST_DEVICE=cpu runs the same functions on the CPU, which leaves only the
device untried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from dgpo.utils.devices import release_unused


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """cuda, or what DGPO_TEST_DEVICE names."""
    named = os.environ.get("DGPO_TEST_DEVICE", "cuda")
    if named == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU; DGPO_TEST_DEVICE=cpu runs these tests on the CPU")
    return named


@pytest.fixture(autouse=True)
def fresh(device: str) -> None:
    """Nothing of the tests before is on the GPU: memory is counted."""
    release_unused(torch.device(device))


@pytest.fixture
def exact() -> Iterator[None]:
    """fp32 products in fp32: loading a model for a GPU allows TF32."""
    if not torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that repeat bit for bit: cuBLAS with a fixed workspace, backwards of attention without atomic sums."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
