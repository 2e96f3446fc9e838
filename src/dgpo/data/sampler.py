"""The order in which a run draws prompts: whole groups, a fresh permutation per epoch, no prompt twice in a batch.

A run may focus: then a share of every batch is drawn by what the prompts still teach.

A batch never straddles two epochs: the two halves could repeat a prompt, and two groups of one prompt would no longer
be normalised together. So the few prompts that an epoch has left over are skipped; which ones changes every epoch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean

import torch

from dgpo.core.seeds import generator
from dgpo.errors import UserError


class PromptSampler:
    """Prompt indices for one batch after another. Its whole state is `position` and `shown`.

    position: how many indices of the permutations are behind it
    shown: prompt -> the spread of rewards that its group showed last, in the order of showing; empty without focus
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise UserError(f"a sampler over {size} prompts has nothing to draw; give at least one")
        self.size, self.seed, self.position = size, seed, 0
        self.shown: dict[int, float] = {}

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


class FocusedSampler(PromptSampler):
    """Draws a share of each batch in proportion to the spread of rewards that a prompt's group is expected to show.

    A group whose images all earn the same teaches nothing: its advantages are 0. Expected is the mean of what the
    prompt showed last and of what the last groups of its tag showed; the tag's alone for a prompt that was not shown
    yet. The rest of the batch follows the permutations, so that no prompt is given up.
    """

    REMEMBERED = 16
    """Groups of a tag, the last ones: what it showed long ago says little of the present model."""

    def __init__(self, seed: int, tags: Sequence[Hashable], share: float) -> None:
        """tags: of each prompt; share: of a batch that is drawn so, in [0, 1), rounded down to whole prompts"""
        super().__init__(len(tags), seed)
        self._tags, self._share = tags, share

    def next(self, num_groups: int) -> list[int]:
        focused = int(self._share * num_groups)
        usual = super().next(num_groups - focused)
        weights = self.expected() + 1e-9  # so that a small set is drawn whole before a prompt comes twice
        weights[usual] = 0
        focused = min(focused, int(weights.count_nonzero()))
        rng = generator(self.seed, "focus", self.position)
        chosen = torch.multinomial(weights, focused, generator=rng).tolist() if focused else []
        missing = num_groups - len(usual) - len(chosen)
        return usual + chosen + (super().next(missing) if missing else [])

    def show(self, prompts: Iterable[int], spreads: Iterable[float]) -> None:
        """Remember the spread of rewards that the group of each prompt showed."""
        for prompt, spread in zip(prompts, spreads, strict=True):
            self.shown.pop(prompt, None)
            self.shown[prompt] = spread

    def expected(self) -> torch.Tensor:
        """(size,) float64 >= 0: the spread that each prompt is expected to show; 1 for all while nothing is known."""
        by_tag: dict[Hashable, list[float]] = {}
        for prompt, spread in self.shown.items():
            by_tag.setdefault(self._tags[prompt], []).append(spread)
        recent = {tag: fmean(spreads[-self.REMEMBERED :]) for tag, spreads in by_tag.items()}
        unknown = max(recent.values(), default=1.0)
        values = [recent.get(tag, unknown) for tag in self._tags]
        for prompt, spread in self.shown.items():
            values[prompt] = (values[prompt] + spread) / 2
        return torch.tensor(values, dtype=torch.float64)
