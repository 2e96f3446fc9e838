"""Who takes part in the benchmark, and under which rules.

All contenders share the task of the recipe `tiny`: base model, LoRA, prompts, rewards, evaluations. "dgpo" has all of
the recipe, which was tuned on this task. "dgpo_paper" and the others have their authors' algorithm settings, and
rollouts of 12 groups of 12 images by ten steps of the same solver. "flow_grpo" has those of `general_ocr_sd3` and
`geneval_sd3` in its authors' config/grpo.py: all steps but the last, their KL at .04. "flow_grpo_fast" has
`geneval_sd3_fast_nocfg`'s: three noisy steps of CPS in the first half, noise .8, no KL.

A run is as long as a number of network forwards, for one image each, a backward counted as two, evaluations not
counted: that does not depend on the machine. Each contender searches its learning rate, with a seed of its own, in
runs of `search_forwards` that are judged on the train list: the highest strict score of those rates that keep nine
tenths of the base model's diversity, or of all if none does. The grid grows by a factor of two while its best is at an
edge. What is best in a short run can be too much for a long one, so the first seed then runs at that rate and at its
half, and on while halving helps: judged by the strict score of its rollouts, on the train list, in the last fifth of
the run. All seeds take the best rate. In every run the rate falls to a tenth along half a cosine: constant rates
favour whoever learns slowly.

Everything computes in fp32, on a GPU without TF32: Flow-GRPO's clip is so narrow that the rounding of bf16 or TF32
would decide whom it clips.

Settings: "plain" samples without guidance; "guided" samples rollouts and evaluations with guidance 3, which Flow-GRPO
trains through and the others do not.

Out of domain, evaluations also have combinations that no training prompt has (`unseen`), and prompts of the other three
kinds, whose combinations are asked for in training of those kinds (`other_seen`) or held out there (`other_unseen`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dgpo.algorithms import AWM, CRD, DGPO, RAM, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.config import Config
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes import recipe

Setting = Literal["plain", "guided"]
Device = Literal["auto", "cpu", "cuda"]
GUIDANCE: dict[Setting, float] = {"plain": 1.0, "guided": 3.0}
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
SEARCH_SEED = 100
EVALUATE_EVERY: dict[Setting, int] = {"plain": 19_200, "guided": 38_400}
"""Forwards between evaluations, rounded to whole iterations. A guided evaluation costs twice as many."""
OTHER_KINDS = {f"other_{split}": f"shapes:{split}:single_object,two_object,counting" for split in ("seen", "unseen")}
"""Evaluation sets of the kinds of prompts that nobody trains on."""
OTHER_IMAGES = 2
"""Images of each of their prompts: a quarter more evaluation for all of them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Options of `dgpo bench`."""

    only: tuple[str, ...] = ()
    """Contenders to run; none: all."""
    setting: Setting = "plain"
    """plain: without guidance; guided: rollouts and evaluations with guidance 3."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs that are compared."""
    forwards: int = 230_400
    """Length of each of them in network forwards per image, a backward as two, evaluations not counted."""
    search_forwards: int = 57_600
    """Length of each run of the search for the learning rate."""
    rates: tuple[float, ...] = LEARNING_RATES
    """Learning rates that the search begins with; a single one is taken without a search."""
    halve: bool = True
    """Whether the first seed also runs at half of the found rate, and on while that helps; all seeds take the best."""
    device: Device = "auto"
    """Where runs compute: cuda, cpu, or cuda where there is one."""
    jobs: int = 1
    """Runs at once, each a process of its own, which share the one GPU or the cores of the CPU."""
    overhead: bool = False
    """Instead of all that, measure an iteration's time and memory against its bare network calls."""
    overhead_recipe: str = "tiny"
    """The recipe whose iteration is measured."""
    overhead_rounds: int = 5
    """How often it is measured."""
    out: str = "benchmarks"
    """Raw results go to OUT/results/time_to_score, run folders to OUT/runs, the page to OUT/bench.html."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in CONTENDERS:
                raise UserError(f"only={name!r} is no contender. {did_you_mean(name, CONTENDERS)}")
        if self.overhead_rounds < 1:
            raise UserError(f"overhead_rounds={self.overhead_rounds} measures nothing; it must be at least 1")
        if self.jobs < 1:
            raise UserError(f"jobs={self.jobs} runs nothing; it must be at least 1")
        if not self.rates or min(self.rates) <= 0 or len({*self.rates}) < len(self.rates):
            raise UserError(f"rates={self.rates} is no grid of learning rates; give different ones above 0")
        if not self.seeds:
            raise UserError("seeds is empty: the benchmark needs at least one, such as --seeds 0")
        if min(self.forwards, self.search_forwards) < 1:
            raise UserError(
                f"forwards={self.forwards} and search_forwards={self.search_forwards} are lengths; both must be at "
                "least 1"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The contenders of this call."""
        return self.only or tuple(CONTENDERS)


def _task(**changes: Any) -> Config:
    """The recipe's task, without what its rollouts and updates owe to the search for DGPO's settings."""
    config = recipe("tiny")
    plain = replace(
        config,
        num_groups=12,
        group_size=12,
        train_images=None,
        drop_equal_groups=False,
        redraw_groups=0,
        sampling=replace(config.sampling, num_inference_steps=10, eval_num_inference_steps=None),
    )
    return replace(plain, **changes)


def _flow_grpo(**changes: Any) -> Config:
    """The authors take two optimizer steps per rollout, each on half of its images."""
    return _task(algorithm=FlowGRPO(**changes), updates_per_rollout=2, split_updates=True)


def _ram() -> Config:
    """The authors do not clip gradients, which are 2 lambda times as large as those of the other losses."""
    config = _task(algorithm=RAM())
    return replace(config, optimizer=replace(config.optimizer, max_grad_norm=1e9))


CONTENDERS: dict[str, Callable[[], Config]] = {
    "dgpo": lambda: recipe("tiny"),
    "dgpo_paper": lambda: _task(algorithm=DGPO(beta=100.0, ref_guidance_scale=4.5, clip_range=1e-3)),
    "flow_grpo": _flow_grpo,
    "flow_grpo_fast": lambda: _flow_grpo(
        sde_type="cps", noise_level=0.8, window=3, window_end=5, kl_coef=0.0, clip_range=1e-5
    ),
    "diffusion_nft": lambda: _task(algorithm=DiffusionNFT()),
    "awm": lambda: _task(algorithm=AWM()),
    "diffusion_dpo": lambda: _task(algorithm=DiffusionDPO(beta=100.0)),
    "ram": _ram,
    "crd": lambda: _task(algorithm=CRD()),
}
"""Name -> its config but for guidance, learning rate, length and seed."""


def config_of(name: str, setting: Setting) -> Config:
    """A contender's config but for learning rate, length and seed."""
    config = CONTENDERS[name]()
    if setting == "guided" and isinstance(config.algorithm, DGPO):  # its mode for guided rollouts
        config = replace(config, algorithm=replace(config.algorithm, ref_guidance_scale=1.0))
    return replace(
        config,
        dtype="fp32",
        sampling=replace(config.sampling, guidance_scale=GUIDANCE[setting]),
        eval_prompts={**config.eval_prompts, **OTHER_KINDS},
        eval_images=dict.fromkeys(OTHER_KINDS, OTHER_IMAGES),
    )
