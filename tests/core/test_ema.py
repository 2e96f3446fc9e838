"""The moving average against its recursion, and the schedule."""

import pytest
import torch

from dgpo.core.ema import ema_update, warmup_decay


def test_one_update_in_place():
    target = [torch.tensor([1.0, 3.0]), torch.tensor([[10.0]])]
    kept = target[0]
    ema_update(target, [torch.tensor([2.0, 3.0]), torch.tensor([[0.0]])], decay=0.9)
    assert target[0] is kept
    torch.testing.assert_close(kept, torch.tensor([1.1, 3.0]))
    torch.testing.assert_close(target[1], torch.tensor([[9.0]]))


def test_the_ends_copy_and_keep_exactly():
    weights = torch.randn(50, generator=torch.Generator().manual_seed(0))
    target = torch.full((50,), 0.1)
    ema_update([target], [weights], decay=0.0)
    assert torch.equal(target, weights)
    ema_update([target], [torch.zeros(50)], decay=1.0)
    assert torch.equal(target, weights)


def test_the_source_keeps_its_gradient_and_may_be_half_precision():
    source = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.bfloat16))
    target = torch.tensor([1.0])
    ema_update([target], [source], decay=0.5)
    assert target.tolist() == [1.5]
    assert not target.requires_grad
    assert source.requires_grad


def test_different_numbers_of_tensors_are_refused():
    with pytest.raises(ValueError, match="zip"):
        ema_update([torch.zeros(1)], [], 0.5)


def test_warmup():
    assert [warmup_decay(step) for step in (0, 100, 300, 9999)] == [0.0, 0.1, 0.3, 0.3]
    assert warmup_decay(10, rate=0.01, max_decay=0.5) == pytest.approx(0.1)
