"""A network whose weights are not read yet: they come from its files block by block, while it is sharded.

So no process ever holds more than one whole block (distributed/sharded.py). What a file calls otherwise than the
network does, or what is converted as it is loaded, only the library knows: such a network is read whole instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from dgpo.errors import UserError

_WEIGHTS = "diffusion_pytorch_model.safetensors"


@final
class Unread:
    """One network of a pipeline, which is read later."""

    def __init__(self, name: str) -> None:
        """name: of the pipeline's part."""
        self.name = name
        self._keys: dict[int, str] = {}  # of each parameter, by its identity: adapters give it other names
        self._files: dict[str, Path] = {}

    def build(self, kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module | None:
        """The network as its library builds it, its parameters without data; None where it must be read whole."""
        config = kind.load_config(folder)
        if kind._keep_in_fp32_modules or "quantization_config" in config:
            return None
        files = _files(folder)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # as the library does, for buffers that are computed
        try:
            with init_empty_weights(include_buffers=False):
                network = kind.from_config(config)
        finally:
            torch.set_default_dtype(default)
        own = network.state_dict(keep_vars=True)
        if {key: tensor.shape for key, tensor in own.items()} != _shapes(files):
            return None
        network.register_to_config(_name_or_path=folder)
        self._files = files
        for key, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(dtype)
                self._keys[id(tensor)] = key
            else:
                owner, _, leaf = key.rpartition(".")
                network.get_submodule(owner)._buffers[leaf] = self._read(key).to(dtype)
        return network.eval()

    def read(self, module: nn.Module) -> None:
        """Read the weights of a module that have no data yet."""
        read: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for leaf, parameter in owner._parameters.items():
                if parameter is None or not parameter.is_meta:
                    continue
                if id(parameter) not in read:
                    data = self._read(self._keys[id(parameter)]).to(parameter.dtype)
                    read[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
                owner._parameters[leaf] = read[id(parameter)]

    def _read(self, key: str) -> Tensor:
        with safe_open(self._files[key], "pt") as file:
            tensor = file.get_tensor(key)
        if not is_finite(tensor):
            raise UserError(f"{self._files[key]} holds NaN or infinity in {key}. Download or save the pipeline again")
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Without a copy as large as the tensor."""
    return not tensor.numel() or all(bool(value.isfinite()) for value in tensor.detach().aminmax())


def _files(folder: Path) -> dict[str, Path]:
    """{key: the file that holds it}; empty where there is none."""
    index = folder / f"{_WEIGHTS}.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: folder / name for key, name in names.items()}
    if not (folder / _WEIGHTS).is_file():
        return {}
    with safe_open(folder / _WEIGHTS, "pt") as file:
        return dict.fromkeys(file.keys(), folder / _WEIGHTS)


def _shapes(files: dict[str, Path]) -> dict[str, torch.Size]:
    shapes = {}
    for path in {*files.values()}:
        with safe_open(path, "pt") as file:
            shapes |= {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes
