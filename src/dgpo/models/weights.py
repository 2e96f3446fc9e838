"""Named weight sets: one network, several values for its trainable tensors.

- `policy` trains; - `ref` is the frozen pretrained network; - `old` (fast) and `ema` (slow) are moving averages of
the policy. All start equal. `use(name)` makes the network itself compute with a set by rebinding names: no tensor is
copied or moved, which is what lets a training step evaluate ref, old and policy in turn.

LoRA (Hu et al. 2021, arXiv 2106.09685): each set but `ref` is an adapter, `ref` is the network with adapters off.
Full fine-tuning: each set is a whole list of parameters, bound to the network's modules in turn.
Where the network is sharded, all of this is this rank's rows (distributed/sharded.py); exports gather them.
`old` and `ema` may live in host memory, from where they visit the device (visits.py): a switch then moves tensors.

Only the policy's parameters ever require a gradient. PEFT's own switches (`set_adapter`, `enable_adapters`) flip
`requires_grad` as they go and take 30 times longer, so the two attributes they end in are set here directly; full
sets are bound as `torch.func.functional_call` binds them, but for as long as the block lasts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from dgpo.config import PLAIN_LORA, LoraConfig
from dgpo.core.ema import ema_update
from dgpo.core.seeds import generator
from dgpo.distributed import on_main
from dgpo.distributed.sharded import Shards, rows_here, whole
from dgpo.errors import UserError, did_you_mean
from dgpo.models.lora import folded, folded_settings
from dgpo.models.visits import Averages
from dgpo.utils.files import share

AVERAGES = ("old", "ema")
EXTRA_SETS = ("ref", *AVERAGES)
DEFAULT_LORA = LoraConfig()
Shard = Callable[[Any], Shards]
"""Spreads a network over the processes."""


@final
class WeightSets:
    """The sets of one network, by name. Built by `lora_weights` or `full_weights`."""

    def __init__(
        self,
        sets: Mapping[str, Mapping[str, nn.Parameter]],
        bind: Callable[[str], None],
        save: Callable[[Path, str, Mapping[str, Tensor]], None],
        shapes: Mapping[str, torch.Size] | None = None,
        averages: Averages | None = None,
    ) -> None:
        """sets: name -> {key: parameter}; bind(name) makes the network use a set; save(directory, name, tensors)
        exports whole tensors as that set

        shapes: {key: shape of the whole parameter}, where the sets are this rank's rows of it
        averages: sets that live in host memory; None: all are where the network is
        """
        self._sets = sets
        self._averages = averages
        self._homes = {
            name: {key: parameter.detach() for key, parameter in own.items()}
            for name, own in sets.items()
            if averages is not None and name in averages
        }
        self._shapes = shapes
        self._bind = bind
        self._save = save
        self._active = "policy"
        self.old_is_policy = True
        """Whether `old` holds the policy's very values: the policy's forward then stands in for one of `old`."""

    @property
    def sharded(self) -> bool:
        """Whether this rank holds some rows of each parameter. Exports are then made by all ranks together."""
        return self._shapes is not None

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the whole parameters, which are the same in every set."""
        policy = self._set("policy")
        return {key: p.shape if self._shapes is None else self._shapes[key] for key, p in policy.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The sets that exist: policy, and those of ref, old, ema that were asked for."""
        return tuple(self._sets)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains: the policy's parameters, fp32."""
        return list(self._set("policy").values())

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The same with the keys that `tensors` and `load` use."""
        return list(self._set("policy").items())

    def own(self, name: str) -> Mapping[str, nn.Parameter]:
        """A set's own parameters by key; none of `ref` where adapters train."""
        return self._set(name)

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Inside the block the network computes with this set; nests, and an exception restores what was before.

        A set that lives on the host stays on the device until another one is used, as a next block may be of it again.
        Run `backward` outside of such blocks: gradient checkpointing computes again with what is bound then.
        """
        self._set(name)
        previous = self._active
        self._visit(name)
        self._switch(name)
        try:
            yield
        finally:
            self._switch(previous)
            if previous in self._homes:
                self._visit(previous)

    def ema_update(self, name: str, decay: float) -> None:
        """set <- decay * set + (1 - decay) * policy, in place."""
        if name not in AVERAGES:
            raise UserError(f"weight set {name!r} is no moving average of the policy; 'old' and 'ema' are")
        policy = self._set("policy").values()
        if self._averages is not None and name in self._averages:
            with torch.no_grad():
                self._averages.follow(self._homes[name].values(), policy, decay)
        else:
            ema_update(self._set(name).values(), policy, decay)
        if name == "old":
            self.old_is_policy = decay == 0

    def stepped(self) -> None:
        """Note that an optimizer step has changed the policy."""
        self.old_is_policy = False

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The set's own tensors (no copies, no gradient) under keys that are the same for every set.

        Of a set that lives on the host they are there, also while it visits the device.
        """
        if name in self._homes:
            return dict(self._homes[name])
        return {key: parameter.detach() for key, parameter in self._set(name).items()}

    def load_whole(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy whole tensors into a set, of which a sharded one takes its rows."""
        if self.sharded and {key: t.shape for key, t in tensors.items()} == self.shapes:
            tensors = {key: tensor[rows_here(len(tensor))] for key, tensor in tensors.items()}
        self.load(name, tensors)

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a set. Keys and shapes must be exactly those of `tensors(name)`."""
        self.leave()
        own = self.tensors(name)
        problems = [f"{key} is missing" for key in own.keys() - tensors.keys()]
        problems += [f"{key} is unknown" for key in tensors.keys() - own.keys()]
        problems += [
            f"{key} is {tuple(tensors[key].shape)} and must be {tuple(own[key].shape)}"
            for key in own.keys() & tensors.keys()
            if tensors[key].shape != own[key].shape
        ]
        if problems:
            some = "; ".join(sorted(problems)[:3])
            raise UserError(
                f"cannot load weight set {name!r}: {len(problems)} of {len(own)} tensors do not fit ({some}). "
                "Were they saved from another model, or with other LoRA settings?"
            )
        for key, value in own.items():
            value.copy_(tensors[key])

    def to(self, name: str, device: torch.device) -> None:
        """Move a set's own tensors, which stay the same parameters. One that lives on the host stays there."""
        if name in self._homes:
            return
        for parameter in self._set(name).values():
            parameter.data = parameter.data.to(device)

    def export(self, directory: str | Path, name: str) -> None:
        """Write one set in the form stock diffusers reads: a LoRA file, or a transformer folder.

        Of a sharded one all ranks must ask for it, and the first writes.
        """
        tensors = self.whole(name)
        if self.sharded:
            on_main(lambda: self.write(directory, name, tensors))
        else:
            self.write(directory, name, tensors)

    def whole(self, name: str) -> dict[str, Tensor]:
        """As `tensors`; of a sharded set the first rank gets whole ones, on the CPU, and all ranks must ask for it."""
        tensors = self.tensors(name)
        return whole(tensors) if self.sharded else tensors

    def write(self, directory: str | Path, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write whole tensors, which a set had at some time, as `export` does."""
        self._save(Path(directory), name, tensors)

    def leave(self) -> None:
        """Let no set that lives on the host visit the device any longer."""
        if self._averages is not None:
            self._averages.leave()

    def _set(self, name: str) -> Mapping[str, nn.Parameter]:
        if name in self._sets:
            return self._sets[name]
        if name in EXTRA_SETS:
            raise UserError(
                f"weight set {name!r} was not made for this model; it has {', '.join(self.names)}. "
                f"Load the model with {name!r} among its sets."
            )
        raise UserError(f"there is no weight set {name!r}. {did_you_mean(name, ('policy', *EXTRA_SETS))}")

    def _visit(self, name: str) -> None:
        if self._averages is not None:
            self._averages.only(name)

    def _switch(self, name: str) -> None:
        if name != self._active:
            self._bind(name)
            self._active = name


def lora_weights(
    network: Any,
    config: LoraConfig,
    default_targets: Sequence[str],
    sets: Sequence[str],
    seed: int,
    save_lora: Callable[[Path, Mapping[str, Tensor], Mapping[str, Any]], None],
    shard: Shard | None = None,
    visited: torch.device | None = None,
) -> WeightSets:
    """Freeze a diffusers network and give it one fp32 adapter per set.

    default_targets: the family's layers where config.target_modules is None
    save_lora: (directory, {key: tensor}, PEFT's settings) -> writes the family's LoRA files, of an adapter of scale 1
    shard: spreads the network, with its adapters; None: every rank holds it whole
    visited: where `old` and `ema` visit, which then live in host memory; None: they live where the network is. Sharded
        ones always do, as they are gathered with it
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    names, config = ("policy", *_extra(sets)), config.filled(PLAIN_LORA)
    network.requires_grad_(False)
    adapters = [name for name in names if name != "ref"]
    _add_adapters(network, config, default_targets, adapters)
    parameters = _by_adapter(network.named_parameters(), adapters)
    _initialise(parameters, config, generator(seed, "lora"))
    shapes = {key: parameter.shape for key, parameter in parameters["policy"].items()}
    if shard is not None:
        parameters = _by_adapter(shard(network).policy().items(), adapters)
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]

    def bind(name: str) -> None:
        for layer in layers:
            vars(layer).update(_disable_adapters=name == "ref", _active_adapter=[name])

    def save(directory: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
        if name == "ref":
            raise UserError("with LoRA the weight set 'ref' is the pretrained model itself: nothing to export")
        settings = folded_settings(network.peft_config[name].to_dict())
        save_lora(directory, folded(tensors, lora_scales(network)), settings)

    bind("policy")
    sets_by_name = {name: parameters.get(name, {}) for name in names}
    averages = None if visited is None or shard is not None else _on_host(visited, sets_by_name)
    return WeightSets(sets_by_name, bind, save, None if shard is None else shapes, averages)


def lora_scales(network: nn.Module, name: str = "policy") -> dict[str, float]:
    """{layer: alpha / rank} of an adapter, the same for all sets."""
    from peft.tuners.lora import LoraLayer

    return {key: m.scaling[name] for key, m in network.named_modules() if isinstance(m, LoraLayer)}


def full_weights(
    network: Any,
    sets: Sequence[str],
    folder: str = "transformer",
    shard: Shard | None = None,
    visited: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> WeightSets:
    """Train a whole diffusers network in fp32; every further set is one more copy of it in memory.

    In half precision `ref` keeps the weights of linear and convolution layers so. Autocast rounds them to it at every
    call, hence the answers are the same, and half of the memory is saved.

    folder: the network's place in a pipeline folder, where an export goes
    shard: spreads the network and its sets; None: every rank holds them whole
    visited: where `old` and `ema` visit, which then live in host memory; None: they live where the network is
    dtype: what autocast computes in; fp32 is without
    """
    network.float().requires_grad_(True)
    halves = dict.fromkeys(() if dtype == torch.float32 else _rounded_by_autocast(network), dtype)
    if shard is not None:
        return _sharded_full_weights(network, sets, folder, shard, visited, halves)
    policy = dict(network.named_parameters())
    owners = [(network.get_submodule(key.rpartition(".")[0])._parameters, key.rpartition(".")[2]) for key in policy]
    parameters: dict[str, dict[str, nn.Parameter]] = {"policy": policy}
    for name in _extra(sets):
        dtypes = halves if name == "ref" else {}
        home = "cpu" if visited is not None and name in AVERAGES else None  # at once: the device may be too small
        parameters[name] = {
            key: nn.Parameter(p.detach().to(home or p.device, dtypes.get(key, p.dtype), copy=True), requires_grad=False)
            for key, p in policy.items()
        }

    def bind(name: str) -> None:
        for (owner, leaf), parameter in zip(owners, parameters[name].values()):
            owner[leaf] = parameter

    def save(directory: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
        bound = [owner[leaf] for owner, leaf in owners]
        try:
            for (owner, leaf), key in zip(owners, policy):
                owner[leaf] = nn.Parameter(tensors[key], requires_grad=False)
            network.save_pretrained(directory / folder)
        finally:
            for (owner, leaf), parameter in zip(owners, bound):
                owner[leaf] = parameter
        share(directory / folder)

    averages = None if visited is None else _on_host(visited, parameters)
    return WeightSets(parameters, bind, save, averages=averages)


def _on_host(visited: torch.device, sets: Mapping[str, Mapping[str, nn.Parameter]]) -> Averages:
    """Move the averages to the host."""
    homes = {name: [*sets[name].values()] for name in AVERAGES if name in sets}
    for parameters in homes.values():
        for parameter in parameters:
            parameter.data = parameter.data.to("cpu")
    return Averages(visited, homes)


def _sharded_full_weights(
    network: Any,
    sets: Sequence[str],
    folder: str,
    shard: Shard,
    visited: torch.device | None,
    halves: Mapping[str, torch.dtype],
) -> WeightSets:
    kind = type(network)
    shards = shard(network)
    extra, on_host = _extra(sets), AVERAGES if visited is not None else ()
    copies = {name: shards.copy(name, name in on_host, halves if name == "ref" else None) for name in extra}
    parameters = {"policy": shards.policy(), **copies}
    homes = {name: shards.gathered(name) for name in extra if name in on_host}

    def save(directory: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            unsharded = kind.from_config(network.config)
        buffers = {key: buffer for key, buffer in network.named_buffers() if key in unsharded.state_dict()}
        unsharded.load_state_dict({**tensors, **buffers}, assign=True)
        unsharded.save_pretrained(directory / folder)
        share(directory / folder)

    averages = None if visited is None else Averages(visited, homes)
    return WeightSets(parameters, shards.bind, save, shards.shapes, averages)


def _rounded_by_autocast(network: nn.Module) -> list[str]:
    """The parameters that autocast rounds whenever they are used: a layer of a class of its own may use them otherwise.

    Such as norms and embeddings, whose weights meet fp32.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [(name, module) for name, module in network.named_modules() if type(module) in kinds]
    return [f"{name}.{leaf}" for name, module in layers for leaf, _ in module.named_parameters(recurse=False)]


def _extra(sets: Sequence[str]) -> tuple[str, ...]:
    """The wanted sets beside policy, checked and in a fixed order."""
    for name in sets:
        if name not in EXTRA_SETS:
            raise UserError(f"sets={tuple(sets)!r} names {name!r}. {did_you_mean(name, EXTRA_SETS)}")
    return tuple(name for name in EXTRA_SETS if name in sets)


def _add_adapters(network: Any, config: LoraConfig, default_targets: Sequence[str], names: Sequence[str]) -> None:
    """Give the network one adapter per name, in fp32."""
    import peft

    if config.rank is None or config.rank < 1:
        raise UserError(f"lora.rank={config.rank}: an adapter needs at least rank 1")
    _check_targets(network, config.target_modules or ())
    targets = list(config.target_modules or default_targets)
    init = "gaussian" if config.init == "gaussian" else True
    for name in names:
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  PEFT divides it, whole or not
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
            target_modules=targets,
            init_lora_weights=init,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            if hasattr(network, "add_adapter"):
                network.add_adapter(settings, name)
            else:  # diffusers has not given this network PEFT's methods
                peft.inject_adapter_in_model(settings, network, name)
    for key, parameter in network.named_parameters():
        if "lora_" in key:
            owner, _, leaf = key.rpartition(".")
            network.get_submodule(owner)._parameters[leaf] = _with_data(parameter)


def _with_data(adapter: nn.Parameter) -> nn.Parameter:
    """In fp32, and 0 where PEFT left it without data, because its layer is not read yet."""
    if adapter.is_meta:
        return nn.Parameter(torch.zeros(adapter.shape, dtype=torch.float32), adapter.requires_grad)
    adapter.data = adapter.data.float()
    return adapter


def _by_adapter(
    parameters: Iterable[tuple[str, nn.Parameter]], names: Sequence[str]
) -> dict[str, dict[str, nn.Parameter]]:
    """Name -> {key free of the name, as in stock LoRA files: parameter}."""
    adapters = [(key, p) for key, p in parameters if "lora_" in key]
    return {name: {k.replace(f".{name}.", "."): p for k, p in adapters if f".{name}." in k} for name in names}


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Each target must name a linear layer: PEFT itself complains only when none does."""
    layers = [key for key, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for target in targets:
        if not any(f".{key}".endswith(f".{target}") for key in layers):
            known = {re.sub(r"^\w+\.\d+\.", "", key) for key in layers}
            raise UserError(f"lora.target_modules: no linear layer is named {target!r}. {did_you_mean(target, known)}")


@torch.no_grad()
def _initialise(adapters: dict[str, dict[str, nn.Parameter]], config: LoraConfig, rng: torch.Generator) -> None:
    """Draw the policy's A on the CPU from a generator of its own (PEFT draws globally); all sets start equal."""
    for key, parameter in adapters["policy"].items():
        if ".lora_A." in key:
            a = torch.empty(parameter.shape)
            if config.init == "gaussian":
                a.normal_(std=1 / len(a), generator=rng)
            else:
                nn.init.kaiming_uniform_(a, a=5**0.5, generator=rng)
            parameter.copy_(a)
    for name, adapter in adapters.items():
        for key, parameter in adapter.items():
            parameter.copy_(adapters["policy"][key]).requires_grad_(name == "policy")
