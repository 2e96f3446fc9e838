"""Continue a LoRA: one that stock diffusers reads becomes the start of every trained weight set.

`ref` stays the pretrained network without it. The file is loaded by diffusers itself (a PEFT folder by PEFT), and taken
from the adapter that it builds: names, ranks and scales are told in a dozen ways, and what counts is what is drawn.
A LoRA that would be loaded only in part is refused, for it would train on in silence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dgpo.config import LoraConfig
from dgpo.errors import UserError
from dgpo.models.lora import KOHYA, PEFT, PEFT_CONFIG, STOCK, layer_of
from dgpo.models.weights import WeightSets
from dgpo.utils.hub_id import is_hub_id
from dgpo.utils.places import run_of

_NAME = "start"
_DOWN = re.compile(r"lora_A\.|lora_down\.|[._]lora\.down\.|lora_linear_layer\.down\.")
"""One of each layer's two tensors, as the files that diffusers reads call it."""


class Start(NamedTuple):
    """An adapter as diffusers builds it."""

    tensors: dict[str, Tensor]  # {LAYER.lora_A.weight: ...}, fp32
    scales: dict[str, float]  # {LAYER: what B A is multiplied by}
    lora: LoraConfig  # its ranks, alphas and layers

    @property
    def ranks(self) -> dict[str, int]:
        return {layer_of(key): len(tensor) for key, tensor in self.tensors.items() if ".lora_A." in key}


def read_start(pipeline: Any, network_name: str, source: str) -> Start:
    """The LoRA at `source`, a folder, a file or a hub id; the pipeline is left as it was."""
    network: nn.Module = getattr(pipeline, network_name)
    names, shapes = [name for name, _ in network.named_modules()], _shapes(network)
    file = choose_file(source)
    load = _load_peft if file.endswith(PEFT) else _load_stock
    try:
        stored = load(pipeline, network_name, source, file)
    except UserError:
        raise
    except Exception as error:  # of diffusers, PEFT or safetensors: what a stranger's file makes them raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"lora.start={source!r} cannot be read as a LoRA: {said}") from error
    start = _built(network, names, source)
    _unload(network)
    if _shapes(network) != shapes or getattr(network, "_transformer_norm_layers", None):
        raise UserError(f"lora.start={source!r} changes the {network_name} beside its adapters (a control LoRA?)")
    _require_whole(start, stored, network_name, source)
    return start


def copy_start(start: Start, weights: WeightSets, lora: LoraConfig, scales: Mapping[str, float]) -> None:
    """Copy a LoRA into all sets but `ref`. B is multiplied so that with the sets' own scales it draws the same."""
    ranks = sorted(set(start.ranks.values()))
    own = {layer_of(key): shape[0] for key, shape in weights.shapes.items() if ".lora_A." in key}
    if own.keys() == start.ranks.keys() and own != start.ranks:
        raise UserError(
            f"lora.start={lora.start!r} has rank {'/'.join(map(str, ranks))}; the config says lora.rank={lora.rank}. "
            "Leave lora.rank out, and the file's is taken"
        )
    tensors = {
        key: tensor * (start.scales[layer] / scales[layer])
        if ".lora_B." in key and (layer := layer_of(key)) in scales and scales[layer] != start.scales[layer]
        else tensor
        for key, tensor in start.tensors.items()
    }
    for name in weights.names:
        if name != "ref":
            try:
                weights.load_whole(name, tensors)
            except UserError as error:
                raise UserError(f"lora.start={lora.start!r} does not fit this model: {error}") from None


def choose_file(source: str) -> str:
    """The path of the LoRA's file, or its name in a hub repository; UserError where there is none or a choice."""
    path = Path(source)
    if path.is_file():
        return source
    if not path.is_dir() and not is_hub_id(source):
        raise UserError(f"lora.start={source!r}: there is no such folder or file, and it is no id owner/name")
    if path.is_dir():
        _require_no_run(path)
    names = [file.name for file in path.iterdir()] if path.is_dir() else _names_on_hub(source)
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if STOCK in found and KOHYA in found:
        found.remove(KOHYA)  # the same LoRA, for other programs
    if not found:
        raise UserError(f"lora.start={source!r} holds no safetensors file; a run leaves its LoRA in RUN/final")
    if len(found) > 1:
        how = f"{source}/{found[0]}" if path.is_dir() else "the file itself, once `hf download` has brought it"
        raise UserError(f"lora.start={source!r} holds several files, {', '.join(found)}; give one of them: {how}")
    return str(path / found[0]) if path.is_dir() else found[0]


def _require_no_run(path: Path) -> None:
    """Refuse a run, or one of its checkpoints, whose LoRA as other programs read it lies further below."""
    if _holds_export(path):
        return
    saved = sorted(path.glob("checkpoints/*/lora"), reverse=True)
    if place := next(filter(_holds_export, (path / "final", path / "lora", *saved)), None):
        raise UserError(f"lora.start={str(path)!r} is a folder of a run, whose LoRA is in {place}; give that")
    if run_of(path) == path:
        raise UserError(
            f"lora.start={str(path)!r} is a run that has left no LoRA; one of finetune='lora' has it in RUN/final"
        )


def _holds_export(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (STOCK, PEFT))


def _names_on_hub(source: str) -> list[str]:
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(source)
    except Exception as error:  # of the hub, of the network or of a proxy: they have no kind in common
        raise UserError(
            f"lora.start={source!r}: the hub does not say what it holds ({type(error).__name__})"
        ) from error


def _load_stock(pipeline: Any, network_name: str, source: str, file: str) -> list[str]:
    """Load by diffusers' own loader; the names of the tensors that it made of the file's."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(
            f"lora.start={source!r}: diffusers reads no LoRA for a {type(pipeline).__name__}; a PEFT folder is read "
            f"({PEFT} beside {PEFT_CONFIG})"
        )
    place = (file, {}) if Path(file).is_file() else (source, {"weight_name": file})
    unet = {"unet_config": pipeline.unet.config} if network_name == "unet" else {}
    state = type(pipeline).lora_state_dict(place[0], use_safetensors=True, **place[1], **unet)
    names = list(state[0] if isinstance(state, tuple) else state)
    others = {part for part in (key.partition(".")[0] for key in names) if part in pipeline.components} - {network_name}
    if others:
        raise UserError(
            f"lora.start={source!r} holds adapters of {', '.join(sorted(others))}; only those of the {network_name} "
            "are trained here"
        )
    pipeline.load_lora_weights(place[0], adapter_name=_NAME, use_safetensors=True, **place[1])
    return names


def _load_peft(pipeline: Any, network_name: str, source: str, file: str) -> list[str]:
    """Load a PEFT folder by PEFT; the names of the file's tensors."""
    import peft

    path = Path(file)
    if path.is_file() and not path.with_name(PEFT_CONFIG).is_file():
        raise UserError(f"lora.start={source!r}: beside {file} there is no {PEFT_CONFIG}, which tells its scale")
    folder = str(path.parent) if path.is_file() else source
    network = getattr(pipeline, network_name)
    peft.PeftModel.from_pretrained(network, folder, adapter_name=_NAME, low_cpu_mem_usage=True)
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(source, file))
    return list(load_file(path))


def _built(network: nn.Module, names: Iterable[str], source: str) -> Start:
    """The adapter that was just loaded. names: of the network's modules before."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    tensors, scales, alphas, ranks = {}, {}, {}, {}
    for layer, module in network.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not isinstance(module, LoraLayer) or module.use_dora.get(_NAME) or module.lora_bias.get(_NAME):
            kind = "DoRA or a bias" if isinstance(module, LoraLayer) else type(module).__name__
            raise UserError(
                f"lora.start={source!r} is no plain LoRA ({kind} at {layer}); only A and B are trained here"
            )
        for part in ("lora_A", "lora_B"):
            tensors[f"{layer}.{part}.weight"] = getattr(module, part)[_NAME].weight.detach().float()
        scales[layer], ranks[layer] = float(module.scaling[_NAME]), int(module.r[_NAME])
        alphas[layer] = _rounded(scales[layer] * ranks[layer])
        if alphas[layer] <= 0:
            raise UserError(f"lora.start={source!r} has alpha {alphas[layer]} at {layer}; it must be above 0")
    if not tensors:
        raise UserError(
            f"lora.start={source!r} holds no adapter of a {type(network).__name__} under a name that diffusers knows"
        )
    (rank, other_ranks), (alpha, other_alphas) = _pattern(ranks), _pattern(alphas)
    targets = tuple(sorted(_short_names(scales, names)))
    own = LoraConfig(
        rank=rank, rank_pattern=other_ranks, alpha=alpha, alpha_pattern=other_alphas, target_modules=targets
    )
    return Start(tensors, scales, own)


def _rounded(alpha: float) -> float:
    """Without the last bits of a division that was multiplied back."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _pattern(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the layers that have another one, in PEFT's notation."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{layer}": value for layer, value in values.items() if value != common}


def _short_names(layers: Iterable[str], names: Iterable[str]) -> set[str]:
    """The shortest endings of the layers' names that no other module's name has: `to_q` for all `...attn.to_q`."""
    layers = list(layers)
    wanted, all_of_them = (Counter(e for name in some for e in _endings(name)) for some in (layers, names))
    return {next((e for e in _endings(layer) if wanted[e] == all_of_them[e]), layer) for layer in layers}


def _endings(name: str) -> list[str]:
    """c, b.c, a.b.c of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]


def _unload(network: Any) -> None:
    """As diffusers does it for a whole pipeline."""
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(network)
    if hasattr(network, "peft_config"):
        del network.peft_config
    if hasattr(network, "_hf_peft_config_loaded"):
        network._hf_peft_config_loaded = None


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _require_whole(start: Start, stored: Iterable[str], network_name: str, source: str) -> None:
    """Each layer of the file has become one of the network."""
    layers = sum(_DOWN.search(key) is not None for key in stored)
    if layers != len(start.ranks):
        raise UserError(
            f"lora.start={source!r} has {layers} layers, and {len(start.ranks)} of them fit this {network_name}: was "
            "it made for another model?"
        )
