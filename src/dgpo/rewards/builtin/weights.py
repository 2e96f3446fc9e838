"""Published weights for rewards: a folder or an id that transformers reads, or one file of tensors.

A file is a path, or OWNER/REPO/FILE on the Hugging Face hub. It is read as safetensors, or as a torch file with
weights_only=True, which runs no code of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgpo.errors import UserError
from dgpo.utils.devices import allow_tf32, cuda_or_cpu
from dgpo.utils.hub_id import is_hub_id

FILES = (".safetensors", ".pt", ".pth", ".bin")


class MissingFiles(UserError):
    """What a reward reads is neither here nor to be had from the hub."""


@contextmanager
def asking_the_hub(allowed: bool) -> Iterator[None]:
    """Where it is not allowed, only what lies here is found."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_file(weights: str | Path) -> bool:
    """Whether `weights` names one file of tensors, not a folder or an id for transformers."""
    return str(weights).endswith(FILES) and not Path(weights).expanduser().is_dir()


def read_tensors(weights: str | Path) -> dict[str, Tensor]:
    """The tensors of a file on the CPU, by name. A checkpoint that holds them under `state_dict` is unpacked."""
    path = _local(weights)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is something else fails in as many ways as there are files
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"cannot read tensors from {str(path)!r}: {reason}. A file that holds more than tensors is refused, "
            "because reading it could run its code. If you trust it, convert it once: safetensors.torch.save_file("
            "torch.load(path, map_location='cpu', weights_only=False), 'new.safetensors')"
        ) from error
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{str(path)!r} holds a {type(tensors).__name__} that is no dict of tensors")
    return dict(tensors)


def fill(module: nn.Module, tensors: dict[str, Tensor], weights: str | Path) -> None:
    """Copies tensors into a module, all of it and nothing else."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights {str(weights)!r} are not those of {type(module).__name__}: {error}") from error


def from_pretrained(cls: Any, name: str, reward: str) -> Any:
    """`cls.from_pretrained(name)` of a model, tokenizer, processor or config of transformers, with errors for the user.

    A model is refused if tensors are missing in its file: they would stay random and still score.
    """
    is_model = nn.Module in getattr(cls, "__mro__", ())
    options = {"output_loading_info": True} if is_model else {}
    try:
        loaded = cls.from_pretrained(str(Path(name).expanduser()), **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        kind = MissingFiles if isinstance(error, OSError) else UserError
        raise kind(
            f"the reward {reward} cannot load {name!r} as {cls.__name__}: {error}. Give a folder or an id of the "
            "Hugging Face hub that holds one"
        ) from error
    if not is_model:
        return loaded
    model, info = loaded
    missing = sorted(info["missing_keys"] & dict(model.named_parameters()).keys())  # buffers are no weights
    if missing:
        raise UserError(
            f"the reward {reward} cannot use {name!r} as {cls.__name__}: {len(missing)} tensors are missing there "
            f"({', '.join(missing[:3])}{', ...' if missing[3:] else ''}) and would be random"
        )
    return model


def check_batch_size(batch_size: int) -> int:
    """The same number, if it is one that images can be taken by."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} takes no image at a time; give 1 or more")
    return batch_size


def place(module: nn.Module, device: str | torch.device | None, dtype: str | torch.dtype) -> nn.Module:
    """The module on `device` (None: CUDA where there is one) in `dtype` ("float32", "bfloat16", ...), frozen."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise UserError(f"dtype={dtype!r} is no floating type of torch; give 'float32', 'bfloat16' or 'float16'")
    where = torch.device(device or cuda_or_cpu())
    allow_tf32(where)  # as in a run, so that `dgpo score` and a server give the same scores
    return module.eval().requires_grad_(False).to(where, kind)


def _local(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    repo, _, name = str(weights).rpartition("/")
    if not (is_hub_id(repo) and name):
        raise UserError(f"there is no file {str(weights)!r}; give a path, or OWNER/REPO/FILE on the Hugging Face hub")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name))
    except Exception as error:  # whichever HTTP library this version of the hub's client is built on
        raise UserError(
            f"there is no local file {str(weights)!r}, and the Hugging Face hub gave none: {error}. Download the file "
            "on a machine that reaches the hub, and give its path"
        ) from error
