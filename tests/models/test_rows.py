from __future__ import annotations

import torch

from dgpo.models.rows import Rows


def rows() -> Rows:
    return Rows({"tokens": torch.arange(12.0).reshape(3, 2, 2), "pooled": torch.arange(3.0).reshape(3, 1)})


def test_rows_are_chosen_repeated_joined_and_moved():
    cond = rows()
    assert len(cond) == 3
    assert cond[1:].tensors["pooled"].tolist() == [[1.0], [2.0]]
    assert cond[torch.tensor([2, 0])].tensors["tokens"][:, 0, 0].tolist() == [8.0, 0.0]
    assert cond.repeat(2).tensors["pooled"].flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert cond.repeat(2).tensors["tokens"][:, 0, 0].tolist() == [0, 0, 4, 4, 8, 8]
    assert {tensor.device.type for tensor in cond.to("meta").tensors.values()} == {"meta"}
    joined = cond[:1].cat(cond[2:], cond[:1])
    assert joined.tensors["pooled"].flatten().tolist() == [0, 2, 0]
    assert joined.tensors["tokens"][:, 0, 0].tolist() == [0, 8, 0]


def test_shorter_prompts_are_padded_with_zeros_at_the_end():
    short = Rows({"tokens": torch.ones(1, 2, 3), "mask": torch.ones(1, 2, dtype=torch.bool), "size": torch.ones(1)})
    long = Rows({"tokens": torch.ones(2, 4, 3), "mask": torch.ones(2, 4, dtype=torch.bool), "size": torch.ones(2)})
    for joined in (short.cat(long), long.cat(short)[torch.tensor([2, 0, 1])]):
        assert joined.tensors["tokens"].shape == (3, 4, 3)
        assert joined.tensors["tokens"][0, :, 0].tolist() == [1, 1, 0, 0]
        assert joined.tensors["mask"].tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
        assert joined.tensors["mask"].dtype == torch.bool
        assert joined.tensors["size"].tolist() == [1, 1, 1]
