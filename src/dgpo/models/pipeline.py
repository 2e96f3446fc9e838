"""A stock diffusers pipeline as a VelocityModel. What all families share is here; a family says only what differs.

The trained network computes under autocast unless in fp32, and in plain bf16 where it only draws (plain.py); t,
latents, guidance and solvers are fp32. Frozen parts are in the precision they were loaded in, the VAE in fp32 or bf16.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from dgpo.config import PLAIN_LORA
from dgpo.core.guidance import require_guidance
from dgpo.core.solvers import flow_sigmas
from dgpo.distributed.lockstep import Call, Lockstep
from dgpo.distributed.sharded import Shards
from dgpo.errors import UserError
from dgpo.models.attention import Fp32Attention
from dgpo.models.autoencoder import compute_in, encoded_mean
from dgpo.models.compiling import compile_blocks
from dgpo.models.grids import scheduler_grid, to_terminal
from dgpo.models.guidance import linear_guidance
from dgpo.models.long_text import longer_than, without_cut_text
from dgpo.models.lora import write_lora
from dgpo.models.plain import may_be_plain, plain
from dgpo.models.quantised import BasePrecision, quantise
from dgpo.models.rows import Rows
from dgpo.models.visits import Visits
from dgpo.models.weights import DEFAULT_LORA, EXTRA_SETS, LoraConfig, full_weights, lora_weights


class Family(Protocol):
    """One kind of pipeline. n is the number of images; x_t, v and x0 are (n, *latent_shape) in flow coordinates.

    A class that derives from it says only where it differs from the plainest one: a transformer that answers for
    latents as they are, linear guidance, the grid of a fixed shift, an autoencoder with a scale and perhaps a shift.
    What depends on the size of images follows from latent_shape or from the latents that a method is given.
    """

    network: ClassVar[str] = "transformer"
    """The pipeline's part that trains: transformer or unet."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the layers that get an adapter unless told otherwise."""
    distilled_guidance: float | None = None
    """The guidance that the network is told as an input; None where it has no such input."""
    guides: bool = True
    """Whether the pipeline draws with guidance; one that is distilled to draw without ignores the scale."""
    pipeline: Any
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    encodes_on: torch.device | None = None
    """Where the text encoders are; None: where the network is."""

    def __init__(self, pipeline: Any, resolution: int | None, max_sequence_length: int | None) -> None:
        """resolution: side of the square images in pixels, None is the model's own; UserError where it cannot be."""
        ...

    def at_resolution(self, resolution: int) -> Family:
        """This family for images of another size, while the pipeline has its text encoders. UserError as at its making.

        A family that keeps more than latent_shape of a size writes its own.
        """
        other = copy.copy(self)
        other.latent_shape = type(self)(
            self.pipeline, resolution, getattr(self, "max_sequence_length", None)
        ).latent_shape
        return other

    @property
    def text_device(self) -> torch.device:
        """Where prompts are encoded."""
        return self.encodes_on or getattr(self.pipeline, self.network).device

    @property
    def shift(self) -> float:
        """Of the pipeline's own flow grid, `t' = shift t / (1 + (shift - 1) t)`."""
        ...

    def shift_for(self, num_steps: int) -> float:
        """That of a grid of so many steps, where the pipeline's follows their number."""
        return self.shift

    @property
    def noise_scale(self) -> float:
        """Deviation of the latents at the grid's first level: 1 where that is t = 1."""
        return 1.0

    def encode(self, prompts: list[str]) -> Rows:
        """n prompts as the network reads them; "" is the empty prompt of guidance."""
        ...

    def encode_negative(self, prompts: list[str]) -> Rows:
        """n prompts that guidance leads away from, where the stock call reads them otherwise."""
        return self.encode(prompts)

    def text_limits(self) -> dict[str, int]:
        """Name of each tokenizer of the pipeline -> how many tokens of a prompt, with the marks that the tokenizer adds
        to it, reach the network. Asked while the pipeline has its text encoders."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if tokenizer is None:
            return {}
        return {"tokenizer": getattr(self, "max_sequence_length", None) or tokenizer.model_max_length}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        """The network's `noise - x0`; t: (n,) fp32 in [0, 1]. Called under autocast, or with the network in plain bf16,
        which then rounds what it is given; the result is made fp32."""
        ...

    def guide(self, v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
        """The pipeline's own way of combining the two, where scale 1 is v_cond."""
        return linear_guidance(v_uncond, v_cond, scale)

    def sigmas(self, num_steps: int, shift: float) -> Tensor:
        """(num_steps + 1,) fp32 descending grid with a trailing 0."""
        return to_terminal(flow_sigmas(num_steps, shift), self.pipeline.scheduler.config.get("shift_terminal"))

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) the grid of the pipeline's own scheduler, which a stock call walks; for comparisons."""
        return scheduler_grid(self.pipeline, num_steps)

    def decode(self, x0: Tensor) -> Tensor:
        """Images (n, 3, H, W), the VAE's range [-1, 1] not yet changed to [0, 1]."""
        vae = self.pipeline.vae
        return vae.decode(self.to_vae(x0).to(vae.dtype), return_dict=False)[0]

    def encode_images(self, images: Tensor) -> Tensor:
        """Its inverse: (n, 3, H, W) in [-1, 1] -> (n, *latent_shape)."""
        return self.from_vae(encoded_mean(self.pipeline.vae, images))

    def to_vae(self, x0: Tensor) -> Tensor:
        """Latents as the network sees them -> the autoencoder's own, in the way of the family's stock pipeline."""
        config = self.pipeline.vae.config
        return x0 / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def from_vae(self, latents: Tensor) -> Tensor:
        """The inverse."""
        config = self.pipeline.vae.config
        return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        """The arguments with which a stock call reads prompts and guides as this family does, for model cards."""
        return {"guidance_scale": guidance_scale}

    @property
    def timesteps(self) -> float:
        """What the scheduler multiplies t by to number it for the network, 1000 in all published pipelines."""
        return float(self.pipeline.scheduler.config.get("num_train_timesteps", 1000))


class PipelineModel:
    """Implements `dgpo.models.base.VelocityModel`; the shapes are documented there."""

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        *,
        finetune: Literal["lora", "full"] = "lora",
        lora: LoraConfig = DEFAULT_LORA,
        sets: Sequence[str] = EXTRA_SETS,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        base_precision: BasePrecision = "auto",
        shift: float | None = None,
        negative_prompt: str = "",
        encoders_first: bool = False,
        offload: Literal["none", "parts"] = "none",
        averages: Literal["device", "host"] = "device",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        vae_dtype: torch.dtype = torch.float32,
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        shard: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Take over a loaded pipeline: freeze it, put it on a device, make the weight sets.

        dtype: what the network computes in, by autocast unless fp32; a pipeline loaded in bf16 needs bf16 here
        base_precision: int8 or nf4 quantises the network, which adapters are then trained on; auto leaves it
        shift: of the flow grid; None: the pipeline's own
        negative_prompt: what guidance leads away from; UserError where the stock call takes none
        encoders_first: only the text encoders and what trains go to the device now; the rest follows when the encoders
            are let go, or when it is first asked, so that a device need not hold all at once
        offload: parts keeps frozen parts in host memory, from where the text encoders, the network and the autoencoder
            visit the device one after another; what trains is on the device
        averages: host keeps `old` and `ema` in host memory, from where they visit the device to answer and to follow
        vae_dtype: what the autoencoder computes in, and is kept in
        shard: spread the network over the processes; it is then on the device from the start. The function gives a
            module the weights that are not read yet
        """
        self.pipeline = pipeline
        self.family = family
        self.lora = lora.filled(PLAIN_LORA)
        self.dtype = dtype
        self._own_shift = shift
        self.shift = family.shift if shift is None else shift  # which refuses a scheduler of no flow
        if negative_prompt and "negative_prompt" not in signature(type(pipeline).__call__).parameters:
            raise UserError(
                f"negative_prompt={negative_prompt!r} cannot work: a {type(pipeline).__name__} takes none; leave it out"
            )
        self.negative_prompt = negative_prompt
        self.absent = tuple(
            name
            for name, part in pipeline.components.items()
            if part is None and name not in pipeline._optional_components
        )
        self.draws_plain = False
        """Whether the network computes in plain bf16 now."""
        self._place = torch.device(device)
        self._encoded_negative: list[Rows] = []  # once it was encoded
        self._autoencoder: str | None = None  # its fingerprint, of before it was rounded
        if vae_dtype != torch.float32:
            self._autoencoder = None if pipeline.vae.device.type == "meta" else _fingerprint([pipeline.vae])
            compute_in(pipeline.vae, vae_dtype)
        if base_precision != "auto":
            quantise(self.network, base_precision, dtype)
        self._waiting = [
            part
            for name, part in self._modules()
            if (offload == "parts" or (encoders_first and not self._encodes(name)))
            and not (shard is not None and part is self.network)
        ]
        for _, part in self._modules():
            part.requires_grad_(False).eval()
            if part not in self._waiting and not (shard is not None and part is self.network):
                part.to(device)
        spread = None if shard is None else partial(Shards, device=self._place, read=shard)
        visited = self._place if averages == "host" else None
        self.weights = (
            full_weights(self.network, sets, family.network, spread, visited, dtype)
            if finetune == "full"
            else lora_weights(
                self.network, self.lora, family.lora_targets, sets, seed, self._save_lora, spread, visited
            )
        )
        self._steps = Lockstep(("ref", "policy", "old", "ema"), self._take_part) if spread else None
        if self._waiting:
            family.encodes_on = self._place
            if not self.weights.sharded:
                for name in self.weights.names:
                    self.weights.to(name, self._place)
        self._visits = None
        if offload == "parts":
            self._waiting.clear()
            trained = (t for name in self.weights.names for t in self.weights.own(name).values())
            self._visits = Visits(self._place, trained)
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if compile:
            compile_blocks(self.network, self.device)
        if vae_slicing:
            pipeline.vae.enable_slicing()
        if vae_tiling:
            pipeline.vae.enable_tiling()

    @property
    def network(self) -> Any:
        """The part that trains."""
        return getattr(self.pipeline, self.family.network)

    @property
    def device(self) -> torch.device:
        # diffusers' own property walks over all modules, which takes as long as a small network's forward on a GPU
        return self._place if self._waiting or self._visits else next(self.network.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.family.latent_shape

    def at_resolution(self, resolution: int) -> PipelineModel:
        """The same network, weights and text encoders for images of another size, with their noise, grid and shift.

        Only while the text encoders are there. UserError for a size that the model does not draw.
        """
        other = copy.copy(self)
        other.family = self.family.at_resolution(resolution)
        other.shift = other.family.shift if self._own_shift is None else self._own_shift
        return other

    @property
    def latent_space(self) -> dict[str, Any]:
        vae: Any = self.pipeline.vae
        return {
            "latent_shape": list(self.latent_shape),
            "scaling_factor": vae.config.get("scaling_factor") or 1.0,
            "shift_factor": vae.config.get("shift_factor") or 0.0,
            "autoencoder": self._autoencoder or _fingerprint([vae]),
            # a scale per channel instead of one factor, where the autoencoder has it
            **{name: list(vae.config[name]) for name in ("latents_mean", "latents_std") if vae.config.get(name)},
        }

    @property
    def text_space(self) -> dict[str, Any]:
        """What conditioning means: models that answer the same encode prompts alike."""
        encoders = [part for name, part in self._modules() if self._encodes(name)]
        if not encoders:
            raise RuntimeError("the text encoders were let go: ask for text_space before")
        return {
            "family": type(self.family).__name__,
            "max_sequence_length": getattr(self.family, "max_sequence_length", None),
            "dtype": str(self.dtype),
            "encoders": _fingerprint(encoders),
        }

    def encode(self, prompts: list[str]) -> Rows:
        return self._encode(prompts, self.family.encode)

    @torch.no_grad()
    def _encode(self, prompts: list[str], encode: Callable[[list[str]], Rows]) -> Rows:
        self.weights.leave()
        if self._visits:
            self._visits.only(*(part for name, part in self._modules() if self._encodes(name)))
        with without_cut_text(self.pipeline):
            return encode(prompts)

    def long_prompts(self, prompts: Iterable[str]) -> list[str]:
        """A line on the prompts whose ends the network will not see; none where there is no such prompt."""
        told = [self.negative_prompt] if self.negative_prompt else []
        return longer_than(self.pipeline, self.family.text_limits(), [*prompts, *told])

    @property
    def _negative(self) -> Rows:
        if not self._encoded_negative:
            self._encoded_negative.append(self._encode([self.negative_prompt], self.family.encode_negative))
        return self._encoded_negative[0]

    def free_encoders(self) -> None:
        """After this `encode` fails; the negative prompt of guidance is kept."""
        assert len(self._negative) == 1
        if self._visits:
            self._visits.only()
        for name in [name for name, _ in self._modules() if self._encodes(name)]:  # and no reference is left behind
            self.pipeline.register_modules(**{name: None})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._visits:  # which come when they are asked
            self._place_rest()

    def _place_rest(self) -> None:
        """What waited for the text encoders to go: network and autoencoder. Of visitors only the network."""
        if self._visits:
            self._visits.only(self.network)
        while self._waiting:
            self._waiting[-1].to(self._place)
            self._waiting.pop()
            self.weights.leave()  # adapters that live on the host have come with the network

    def _place_autoencoder(self) -> None:
        self.weights.leave()
        if self._visits:
            self._visits.only(self.pipeline.vae)
        else:
            self._place_rest()

    def _encodes(self, name: str) -> bool:
        """Whether the pipeline's part of this name is for text."""
        return name not in ("vae", self.family.network)

    def _modules(self) -> list[tuple[str, nn.Module]]:
        """The pipeline's networks by name."""
        return [(name, part) for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)]

    def init_noise(self, generators: list[torch.Generator]) -> Tensor:
        rows = [torch.randn(self.latent_shape, generator=generator) for generator in generators]
        return torch.stack(rows).to(self.device) * self.family.noise_scale

    def velocity(
        self, x_t: Tensor, t: Tensor, cond: Any, guidance_scale: float = 1.0, weights: str = "policy"
    ) -> Tensor:
        require_guidance("guidance_scale", guidance_scale)
        self.require_guided(guidance_scale)
        if guidance_scale != 1.0:
            _ = self._negative  # whose encoders may have to visit before the network
        self._place_rest()
        x_t, t, cond = x_t.to(self.device), t.to(self.device), cond.to(self.device)
        with self._steps.call(weights) if self._steps else nullcontext(), self.weights.use(weights):
            if guidance_scale == 1.0:
                return self._forward(x_t, t, cond)
            both = self._negative.repeat(len(cond)).cat(cond)
            v_uncond, v_cond = self._forward(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            return self.family.guide(v_uncond, v_cond, guidance_scale)

    def require_guided(self, *scales: float) -> None:
        """Refuse a scale other than 1 where the stock pipeline would draw without guidance."""
        scale = next((scale for scale in scales if scale != 1.0), None)
        if scale is not None and not self.family.guides:
            raise UserError(
                f"guidance {scale} cannot work: this model is distilled to draw without, and its pipeline ignores the "
                "scale; take a guidance_scale of 1 (and algorithm.ref_guidance_scale), or the base model"
            )

    def _take_part(self, call: Call) -> None:
        """Help other ranks to gather weights, and to sum gradients, with a row that changes nothing."""
        x_t, t = torch.zeros(1, *self.latent_shape, device=self.device), torch.full((1,), 0.5, device=self.device)
        cond = self._negative.to(self.device)
        with torch.set_grad_enabled(call.trains), self.weights.use(call.weights):
            v = self._forward(x_t, t, cond)
            if call.trains:
                v[:0].sum().backward()

    @contextmanager
    def drawing(self, weights: str) -> Iterator[None]:
        """Inside the block velocities of this set, without gradient, are those of a stock pipeline in this precision.

        They round otherwise than a training forward. Nothing is different in fp32, where all weights train, and where
        the network is sharded or quantised.
        """
        self._place_rest()
        if torch.is_grad_enabled() or self.weights.sharded or not may_be_plain(self.network, self.dtype):
            yield
            return
        with self.weights.use(weights), plain(self.network, self.weights.own(weights), self.dtype):
            self.draws_plain = True
            try:
                yield
            finally:
                self.draws_plain = False

    def _forward(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        half = self.dtype != torch.float32
        # a checkpointed block is computed again in backward, outside of any mode but autocast
        exact = half and self.device.type == "cpu" and not self.network.is_gradient_checkpointing
        mixed = half and not self.draws_plain
        with (
            # the cache would keep every sharded block's weights, once more in bf16, until the forward ends
            torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed, cache_enabled=not self.weights.sharded),
            Fp32Attention() if exact else nullcontext(),
        ):
            return self.family.predict(x_t, t.float(), cond).float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        self._place_autoencoder()
        return (_plain(self.family.decode(x0)) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:])
        if images.shape[1:] != (3, height, width):
            raise UserError(
                f"an image has {images.shape[-1]} x {images.shape[-2]} pixels, and the model draws {width} x {height}; "
                "resize the images, or set resolution (sampling.resolution for images that train)"
            )
        self._place_autoencoder()
        return _plain(self.family.encode_images((images * 2 - 1).to(self.pipeline.vae.device)))

    def sigmas(self, num_steps: int) -> Tensor:
        shift = self.family.shift_for(num_steps) if self._own_shift is None else self._own_shift
        return self.family.sigmas(num_steps, shift).to(self.device)

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) the grid of the pipeline's own scheduler, which a stock call walks; for comparisons."""
        return self.family.scheduler_sigmas(num_steps).to(self.device)

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        """The arguments of a stock call that draws pictures like this model's."""
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:])
        told = {"negative_prompt": self.negative_prompt} if self.negative_prompt and guidance_scale > 1 else {}
        return {**self.family.stock_call(guidance_scale), **told, "height": height, "width": width}

    def _save_lora(self, directory: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        write_lora(
            directory, tensors, metadata, self.family.network, peft=not hasattr(self.pipeline, "load_lora_weights")
        )


def _plain(values: Tensor) -> Tensor:
    """fp32 in PyTorch's usual order, which rewards may rely on: an autoencoder's may be channels last."""
    return values.to(torch.float32, memory_format=torch.contiguous_format)


def _fingerprint(modules: Sequence[nn.Module]) -> str:
    """A hash of their small tensors, which is quick and enough to tell them apart."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            if tensor.numel() <= 4096:
                digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
