"""How different the pictures of a prompt are: held-out scores for any model, which fall when its pictures become alike.

    score of an image = mean over the other images of its prompt of the distance to it

so that the mean over a prompt's images is the mean distance of its pairs. Distances are the root mean square difference
of pixels, or 1 - cos of CLIP's image embeddings (Radford et al. 2021, arXiv 2103.00020), which looks past colours and
places. Both grow with noise and with failing in many ways too: read them beside scores of quality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.builtin.towers import Towers


class PixelDiversity:
    """images (B, 3, H, W) in [0, 1] -> (B,) in [0, 1]: 0 for copies, about 0.41 for uniform noise."""

    needs_group = True

    def __call__(
        self,
        images: Tensor,
        prompts: list[str],
        metadata: list[dict[str, Any]],
        group_index: Tensor | None = None,
    ) -> Tensor:
        return _mean_distances("pixel_diversity", images.float().flatten(1), _rms, prompts, group_index)


class ClipDiversity:
    """images (B, 3, H, W) in [0, 1] -> (B,) in [0, 2]. The arguments are those of `Towers`."""

    needs_group = True

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        self.towers = Towers("clip_diversity", model, processor, device=device, dtype=dtype, batch_size=batch_size)

    def __call__(
        self,
        images: Tensor,
        prompts: list[str],
        metadata: list[dict[str, Any]],
        group_index: Tensor | None = None,
    ) -> Tensor:
        embeds = self.towers.image_embeds(images)
        return _mean_distances("clip_diversity", embeds, lambda group: 1 - group @ group.T, prompts, group_index)


def _rms(group: Tensor) -> Tensor:
    """(G, D) -> (G, G)."""
    return torch.cdist(group, group, compute_mode="donot_use_mm_for_euclid_dist") / group.shape[1] ** 0.5


def _mean_distances(
    name: str,
    features: Tensor,
    distances: Callable[[Tensor], Tensor],
    prompts: list[str],
    group_index: Tensor | None,
) -> Tensor:
    """Each image's mean distance to the others of its group. features: (B, D); group_index: None groups by prompt."""
    if group_index is None:
        group_index = torch.tensor([prompts.index(prompt) for prompt in prompts])
    means = features.new_empty(len(features))
    for group in group_index.unique():
        rows = (group_index == group).nonzero().flatten()
        if len(rows) < 2:
            raise UserError(
                f"{name} compares the images of a prompt, and {prompts[int(rows[0])]!r} has only one; draw at least 2 "
                "(eval_images_per_prompt, where it is watched)"
            )
        apart = distances(features[rows]).fill_diagonal_(0)
        means[rows] = apart.sum(1) / (len(rows) - 1)
    return means
