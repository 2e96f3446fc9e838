"""What the loop knows of a network: a velocity field over latents, its conditioning, its noise, its pictures.

Every supported model answers in flow-matching coordinates, whatever it was trained to predict:
`x_t = (1 - t) * x0 + t * noise`, `velocity = noise - x0`, t in [0, 1] and t = 1 pure noise. A variance-preserving
network is the same thing after a change of coordinates (`core/flow.py`). n is the number of rows (images).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dgpo.models.weights import WeightSets

C = TypeVar("C", bound="Cond")


class Cond(Protocol):
    """n rows of a model's own conditioning. Opaque to the loop, which only selects rows."""

    def __len__(self) -> int:
        """n, the number of rows."""
        ...

    def __getitem__(self: C, index: slice | Tensor) -> C:
        """The rows of a slice or of a (k,) int64 tensor."""
        ...

    def repeat(self: C, n: int) -> C:
        """Each row n times in a row: a, a, b, b."""
        ...

    def cat(self: C, *others: C) -> C:
        """These rows, then those of the others."""
        ...

    def to(self: C, device: torch.device | str) -> C:
        """The same rows on another device; `velocity` moves what it is given."""
        ...


class VelocityModel(Protocol):
    """A text-to-image model as a velocity field. All tensors it returns are on `device`, latents and v in fp32.

    It may have three more methods. `drawing(weights)` is a context around the velocities of one batch of pictures,
    without gradient, in which they may be computed faster and round otherwise. `at_resolution(resolution)` is the same
    model with the same weights for images of so many pixels a side, which `sampling.resolution` needs.
    `long_prompts(prompts)` is a list of warnings, of prompts that `encode` does not read to their ends.
    """

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One image's latents, (C, h, w)."""
        ...

    @property
    def weights(self) -> WeightSets:
        """The network's weight sets: policy, ref, old, ema."""
        ...

    @property
    def latent_space(self) -> dict[str, Any]:
        """What latents mean, in plain JSON: models that answer the same can decode each other's."""
        ...

    def encode(self, prompts: list[str]) -> Cond:
        """n prompts -> n rows of conditioning, without gradient. Frozen encoders: compute once per prompt."""
        ...

    def free_encoders(self) -> None:
        """Let go of what only `encode` needs; called once all prompts are encoded."""
        ...

    def init_noise(self, generators: list[torch.Generator]) -> Tensor:
        """One CPU generator per row -> (n, *latent_shape) standard normal fp32; a row depends on its generator only."""
        ...

    def velocity(
        self, x_t: Tensor, t: Tensor, cond: Cond, guidance_scale: float = 1.0, weights: str = "policy"
    ) -> Tensor:
        """The predicted `noise - x0`, (n, *latent_shape) fp32.

        x_t: (n, *latent_shape) fp32
        t: (n,) fp32 in [0, 1]
        cond: n rows
        guidance_scale: s >= 1 of `v_uncond + s * (v_cond - v_uncond)`; 1 is the conditional velocity alone, one forward
        weights: the set that answers, whatever `weights.use` block surrounds the call. Only "policy" has a gradient
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """(n, *latent_shape) clean latents -> (n, 3, H, W) images, fp32 in [0, 1], without gradient."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, *latent_shape) fp32, without gradient: what `decode` turns back into them."""
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) fp32 descending grid of t for a solver, with the model's own shift and a trailing 0."""
        ...
