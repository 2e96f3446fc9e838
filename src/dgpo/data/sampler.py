"""The order in which a run draws prompts: whole groups, a fresh permutation per epoch, no prompt twice in a batch.

A batch never straddles two epochs: the two halves could repeat a prompt, and two groups of one prompt would no longer
be normalised together. So the few prompts that an epoch has left over are skipped; which ones changes every epoch.
Prompts that take the place of others (`redraw_groups`) are a batch of their own: in a small list one of them may be in
the rollout already, as another group.
"""

from __future__ import annotations

import torch

from dgpo.core.seeds import generator
from dgpo.errors import UserError


def repeats(num_groups: int, size: int, offline: bool) -> str:
    """What to say where an iteration has more groups than there are prompts, or groups of a dataset; "" elsewhere."""
    if num_groups <= size:
        return ""
    what = "groups of the dataset" if offline else "prompts"
    return f"num_groups={num_groups} is more than the {size} {what}: they repeat within an iteration"


class PromptSampler:
    """Prompt indices for one batch after another. Its whole state is how many indices are behind it."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise UserError(f"a sampler over {size} prompts has nothing to draw; give at least one")
        self.size, self.seed, self.position = size, seed, 0

    def next(self, num_groups: int) -> list[int]:
        """`num_groups` indices in [0, size), all distinct wherever num_groups <= size."""
        if num_groups <= self.size - self.position % self.size or num_groups > self.size:
            start = self.position
        else:
            start = (self.position // self.size + 1) * self.size
        self.position = start + num_groups
        epochs = range(start // self.size, (self.position - 1) // self.size + 1)
        order = {epoch: self._permutation(epoch) for epoch in epochs}
        return [order[i // self.size][i % self.size] for i in range(start, self.position)]

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(self.size, generator=generator(self.seed, "prompts", epoch)).tolist()
