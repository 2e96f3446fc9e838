"""A network whose weights are read block by block is the one that its library reads whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import TINY

from dgpo.errors import UserError
from dgpo.models import FAMILIES
from dgpo.models.unread import Unread
from dgpo.utils.imports import import_named

pytestmark = pytest.mark.slow


def network_of(name: str) -> tuple[str, Any]:
    """A family's tiny network, and the name of its part."""
    part = import_named(FAMILIES[name], name).network
    return part, getattr(TINY[name].make(0), part)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_network_is_read_part_by_part(tmp_path: Path, name: str) -> None:
    part, made = network_of(name)
    made.save_pretrained(tmp_path, max_shard_size="30KB")
    for dtype in (torch.float32, torch.bfloat16):
        whole = type(made).from_pretrained(tmp_path, torch_dtype=dtype)
        unread = Unread(part)
        network = unread.build(type(made), tmp_path, dtype)
        assert network is not None
        assert all(parameter.is_meta for parameter in network.parameters())
        for child in network.children():
            unread.read(child)
        unread.read(network)
        for kind in ("named_parameters", "named_buffers"):
            own, expected = (dict(getattr(one, kind)()) for one in (network, whole))
            assert own.keys() == expected.keys()
            assert {key: tensor.dtype for key, tensor in own.items()} == {k: t.dtype for k, t in expected.items()}
            assert all(torch.equal(own[key], expected[key]) for key in own)
        assert network.config == whole.config
        assert not network.training


def test_what_only_its_library_can_read_is_left_to_it(tmp_path: Path) -> None:
    part, made = network_of("StableDiffusion3Pipeline")
    made.save_pretrained(tmp_path)
    made.register_to_config(num_layers=3)
    made.save_config(tmp_path)
    assert Unread(part).build(type(made), tmp_path, torch.float32) is None, "tensors are missing: it has the error"
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert Unread(part).build(type(made), tmp_path, torch.float32) is None


def test_infinity_in_a_file_is_told(tmp_path: Path) -> None:
    part, made = network_of("StableDiffusion3Pipeline")
    with torch.no_grad():
        made.proj_out.weight[0, 0] = torch.inf
    made.save_pretrained(tmp_path)
    unread = Unread(part)
    network = unread.build(type(made), tmp_path, torch.float32)
    assert network is not None
    with pytest.raises(UserError, match=r"holds NaN or infinity in proj_out.weight"):
        unread.read(network)
