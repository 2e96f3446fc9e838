"""The numbers of an iteration and of an evaluation, alike on every process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from dgpo import distributed
from dgpo.config import Config
from dgpo.core.advantages import frac_reward_zero_std
from dgpo.run.best import Standing, standing
from dgpo.run.callbacks import Callback, Progress
from dgpo.run.changes import ALARMS, FIRST_EVALUATION, LAST_EVALUATION, Alarm, alarm, compare, write_kept
from dgpo.training.compare import compared, constant_scores
from dgpo.training.evaluate import Evaluation
from dgpo.training.state import State
from dgpo.types import Rollout


def describe(rollout: Rollout, config: Config) -> dict[str, float]:
    """What a rollout earned, over all ranks, and how much of it trains.

    Means are over the images that were drawn and have a score, also of groups that were replaced: what is left would
    say less of a policy the more prompts it has solved.
    """
    rewards = distributed.all_gather_rows(rollout.drawn_rewards())
    earned = rewards[~rewards.isnan()]
    comparable = compared(rollout, config)
    groups, own = comparable.group_index.unique(return_inverse=True)
    replaced = sum(gone.equal for gone in rollout.replaced)
    equal = frac_reward_zero_std(comparable.rewards, own, len(groups)).item() * len(groups) + replaced
    names = dict.fromkeys(distributed.gather_objects(rollout.score_names))
    scores = {name: distributed.all_gather_rows(rollout.drawn_scores(name)) for name in names}
    return {
        "train/reward_mean": earned.mean().item(),
        "train/reward_std": earned.std().item(),
        "train/frac_reward_zero_std": equal / (len(groups) + replaced),
        **{f"train/score/{name}": score.nanmean().item() for name, score in scores.items() if not score.isnan().all()},
        **({"train/frac_trained": rollout.group_sizes.sum().item() / len(rewards)} if chooses(config) else {}),
        **failures(rollout, config),
    }


class ConstantRewards(Callback):
    """Warns of rewards that told no two images of a rollout apart."""

    def __init__(self, warn: Callable[[int, Mapping[str, float]], None]) -> None:
        """warn: takes the iteration, counted from 1, and {reward: its one score}"""
        self._warn = warn

    def on_rollout(self, run: Progress, rollout: Rollout) -> None:
        self._warn(run.iteration + 1, constant_scores(rollout, run.config))


def failures(rollout: Rollout, config: Config) -> dict[str, float]:
    """Calls repeated and images dropped, over all ranks, of each trained reward that has a policy for failures."""
    total = sum(distributed.gather_objects([rollout.failures or Counter()]), Counter())
    names = [name for name in config.rewards if name in config.reward_failures]
    return {f"train/reward_{what}/{name}": total[f"{what}/{name}"] for name in names for what in ("retries", "dropped")}


def chooses(config: Config) -> bool:
    """Whether some images of a rollout may not train."""
    drops = any("drop" in policy for policy in config.reward_failures.values())
    return drops or config.drop_equal_groups or config.train_images is not None or config.algorithm.skips_zero


def watched(run: Path, iteration: int, evaluation: Evaluation, config: Config) -> tuple[dict[str, float], Alarm | None]:
    """The metrics of an evaluation with their changes since the run's first one, and the alarm; alike on every rank."""

    def compared() -> list[dict[str, float]]:
        if not distributed.is_main():
            return []
        scores, distinct = evaluation.scores, evaluation.distinct
        found = compare(run / FIRST_EVALUATION, iteration, scores, distinct)
        write_kept(run / LAST_EVALUATION, iteration, scores, distinct)
        return [found]

    metrics = {**evaluation.metrics, **distributed.gather_objects(distributed.together(compared))[0]}
    told = alarm(metrics, config.rewards, config.eval_rewards)
    return {**metrics, ALARMS: len(told.fell) if told else 0}, told


def note_evaluation(state: State, metrics: Mapping[str, float]) -> None:
    """Note that these weights were evaluated, and whether that was the best evaluation so far (run/best.py)."""
    state.evaluated = state.iteration
    now = standing(state.iteration, metrics)
    if now is None:  # no reward is scored where a person alone is asked
        return
    if state.first_score is None:
        state.first_score = now.score
    if state.best_score is None or now.beats(
        Standing(state.best_iteration, state.best_score, state.best_alarmed), state.first_score
    ):
        state.best_iteration, state.best_score, state.best_alarmed = now
