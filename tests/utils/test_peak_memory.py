"""The peak of tensor memory, on the CPU."""

from __future__ import annotations

import torch

from dgpo.utils.peak_memory import peak_memory

CPU = torch.device("cpu")
KB = 1024


def kilobytes(n: int) -> torch.Tensor:
    return torch.ones(n * KB // 4)


def test_freed_tensors_do_not_count_and_views_count_once():
    with peak_memory([], CPU) as peak:
        for _ in range(5):
            first = kilobytes(4)
            view = first.view(-1)[3:]
            del first, view
        assert peak.bytes == 4 * KB
        kept = [kilobytes(4), kilobytes(8)]
        assert peak.bytes == 12 * KB
        del kept
        kilobytes(2)
    assert peak.bytes == 12 * KB


def test_what_was_held_before_counts_once():
    before = kilobytes(16)
    with peak_memory([before, before[5:]], CPU) as peak:
        before.add_(1)
    assert peak.bytes == 16 * KB


def test_activations_kept_for_backward_and_gradients_count():
    weight = kilobytes(4).requires_grad_()
    with peak_memory([weight], CPU) as peak:
        with torch.no_grad():
            weight.sin().cos().exp()
        without = peak.bytes
        loss = weight.sin().cos().exp().sum()
        kept = peak.bytes
        loss.backward()
    assert without == 12 * KB  # the weight, an argument and its result
    assert kept >= 16 * KB  # the weight and three results
    assert peak.bytes > kept
