"""Who takes part in the benchmark, and under which rules.

All contenders share the recipe `tiny`: base model, prompts, evaluations, rollout size, solver, no guidance. "dgpo" has
its algorithm as well, which was tuned on this task; "dgpo_paper" and the others have their papers'. "flow_grpo" has
those of `general_ocr_sd3` and `geneval_sd3` in its authors' config/grpo.py: all steps but the last, their KL at .04.
These guide rollouts and training by 4.5, which nobody does here. "flow_grpo_fast" has `geneval_sd3_fast_nocfg`'s: three
noisy steps in the first half, noise .8, no KL, no guidance; its sampler, "cps", is not here. Each has the learning
rate, out of `LEARNING_RATES`, that earned most on the train list in a short run with a seed of its own; then
every seed runs for the same wall time, over which that rate falls to a tenth along half a cosine, by the pace of the
short run: constant rates favour whoever learns slowly. `EXTRAS` are DGPO with one setting of the loop each, at the rate
that "dgpo" found and the pace of a short run of their own, so that nothing but that setting differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dgpo.algorithms import AWM, CRD, DGPO, RAM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.config import Config
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes import recipe

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEARCH_SEED = 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Options of `dgpo bench`."""

    only: tuple[str, ...] = ()
    """Contenders to run; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs that are compared."""
    minutes: float = 13.0
    """Training time of each of them, evaluations not counted."""
    search_minutes: float = 4.0
    """Training time of each run of the search for the learning rate."""
    budget_minutes: float | None = None
    """Start no run that would end later than this; call again to go on. None: run all."""
    overhead: bool = False
    """Instead of all that, measure an iteration's time and memory against its bare network calls."""
    overhead_recipe: str = "tiny"
    """The recipe whose iteration is measured."""
    overhead_rounds: int = 5
    """How often it is measured."""
    out: str = "benchmarks"
    """Raw results go to OUT/results/bench, run folders to OUT/runs, the page to OUT/bench.html."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in CONTENDERS:
                raise UserError(f"only={name!r} is no contender. {did_you_mean(name, CONTENDERS)}")
        if self.overhead_rounds < 1:
            raise UserError(f"overhead_rounds={self.overhead_rounds} measures nothing; it must be at least 1")
        if not self.seeds:
            raise UserError("seeds is empty: the benchmark needs at least one, such as --seeds 0")
        if min(self.minutes, self.search_minutes) <= 0:
            raise UserError(
                f"minutes={self.minutes} and search_minutes={self.search_minutes} are times; both must be above 0"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The contenders of this call."""
        return self.only or tuple(CONTENDERS)


def _task(**changes: Any) -> Config:
    return replace(recipe("tiny"), **changes)


def _ram() -> Config:
    """The authors do not clip gradients, which are 2 lambda times as large as those of the other losses."""
    config = _task(algorithm=RAM())
    return replace(config, optimizer=replace(config.optimizer, max_grad_norm=1e9))


def _flow_grpo(**changes: Any) -> Config:
    """The authors take two optimizer steps per rollout, each on half of its images."""
    return _task(algorithm=FlowGRPO(**changes), updates_per_rollout=2, split_updates=True)


METHODS: dict[str, Callable[[], Config]] = {
    "dgpo": _task,
    "dgpo_paper": lambda: _task(algorithm=DGPO(beta=100.0, ref_guidance_scale=4.5, clip_range=1e-3)),
    "flow_grpo": _flow_grpo,
    "flow_grpo_fast": lambda: _flow_grpo(window=3, window_end=5, kl_coef=0.0, clip_range=1e-5, noise_level=0.8),
    "diffusion_nft": lambda: _task(algorithm=DiffusionNFT()),
    "awm": lambda: _task(algorithm=AWM()),
    "diffusion_dpo": lambda: _task(algorithm=DiffusionDPO(beta=100.0)),
    "ram": _ram,
    "crd": lambda: _task(algorithm=CRD()),
}
"""Name -> its config but for learning rate and seed, of those that search for their rate."""

EXTRAS: dict[str, Callable[[], Config]] = {
    "dgpo_two_updates": lambda: _task(updates_per_rollout=2),
    "dgpo_drop_equal": lambda: _task(drop_equal_groups=True, redraw_groups=2),
    "dgpo_half_images": lambda: _task(train_images=6),
    "dgpo_text_dropout": lambda: _task(text_dropout=0.1),
}
"""The same for DGPO with one setting of the loop each."""

CONTENDERS = METHODS | EXTRAS


def searcher(name: str) -> str:
    """The contender whose search finds the learning rate of this one."""
    return "dgpo" if name in EXTRAS else name


def config_of(name: str, lr: float, seed: int, decay_steps: int) -> Config:
    """The config of one run, whose length is a matter of time; decay_steps 0: its rate does not fall."""
    config = CONTENDERS[name]()
    return replace(
        config,
        name=f"{name}-lr{lr:g}-seed{seed}",
        seed=seed,
        iterations=10**6,
        optimizer=replace(config.optimizer, lr=lr, decay_steps=decay_steps),
    )
