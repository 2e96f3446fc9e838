"""What a run's numbers say, in words that also say when it got worse, or was better before, or paid elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

from dgpo.report.changes import Change, changes, headline
from dgpo.report.log import Log, find
from dgpo.report.words import duration, from_to, number, plural
from dgpo.run.changes import ALARMS, Moved, alarm

WATCHED_TOLERANCE = 0.10
PEAK_TOLERANCE = 0.05


class Verdict(NamedTuple):
    """The page's first words. `tone` is good, bad, mixed or none."""

    tone: str
    word: str
    sentence: str
    caveats: list[str]


def verdict(log: Log, config: Mapping[str, Any]) -> Verdict:
    """One line for the top of the page, and what a reader must know beside it."""
    found = changes(log, config)
    compared = [change for change in headline(found) if not change.single]
    tone, word = _judgement([change.moved for change in compared], log)
    if tone == "good" and any(point.value > 0 for point in log.series(ALARMS)[-1:]):
        tone = "mixed"
    told = _scores(compared) if compared else _without_comparison(log, headline(found))
    sentence = "; ".join(filter(None, [told, _effort(log)])) + "."
    return Verdict(tone, word, sentence, _caveats(log, config, found, compared))


def noise_scale_sentence(log: Log, num_groups: int | None) -> str | None:
    """Would more groups per step help? From the median estimate of the run's second half, counted in groups.

    McCandlish et al., "An Empirical Model of Large-Batch Training" (2018): at noise scale B a step of G groups makes
    G / (G + B) of a noiseless step's progress. An estimate not above zero, or not finite, saw only noise.
    """
    scales = [value if value > 0 else math.inf for _, value in log.columns.get("train/grad_noise_scale", [])]
    if not scales or not num_groups:
        return None
    late = sorted(scales[len(scales) // 2 :])
    low, scale, high = (_quantile(late, share) for share in (0.25, 0.5, 0.75))
    if math.isinf(scale):
        return (
            f"In most estimates noise drowned the gradient: the noise scale is far above the {num_groups} groups "
            "of a step. More groups per step would help nearly linearly."
        )
    share, gain = num_groups / (num_groups + scale), 2 * (num_groups + scale) / (2 * num_groups + scale)
    middle = f" (middle half of the estimates: {_whole(low)} to {_whole(high)})" if low != high else ""
    return (
        f"The gradient noise scale is about {_whole(scale)} groups{middle}. A step of {num_groups} groups makes about "
        f"{share:.0%} of the progress of a step without noise; twice as many would make {gain:.2f} times as much. "
        + _groups_advice(scale / num_groups)
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """On the straight line between the two values nearest to that share; they may be infinite."""
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below if below == above else below + (place % 1) * (above - below)


def _whole(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < math.inf else number(value)


def _groups_advice(ratio: float) -> str:
    if ratio >= 4:
        return "More groups per step would help nearly linearly."
    if ratio > 0.25:
        return "More groups per step would help, but less than in proportion to their cost."
    return "More groups per step would be wasted. Fewer groups would learn as much per step from fewer images."


def _judgement(moves: list[int], log: Log) -> tuple[str, str]:
    if not moves:
        return "none", "Not compared yet" if log.columns else "Nothing logged yet"
    if not any(moves):
        return "none", "No clear change"
    if min(moves) >= 0:
        return "good", "Improved" if all(moves) else "Improved in part"
    return ("bad", "Got worse") if max(moves) <= 0 else ("mixed", "Mixed")


def _scores(compared: list[Change]) -> str:
    by_score = groupby(compared, key=_score)
    told = (f"{score} " + ", ".join(map(_on_set, group)) for score, group in by_score)
    return "; ".join(told)


def _score(change: Change) -> str:
    return change.name.score


def _on_set(change: Change) -> str:
    unclear = "" if change.moved else " (no clear change)"
    return f"{change.values} on {change.name.eval_set}{unclear}"


def _without_comparison(log: Log, evaluated: list[Change]) -> str:
    scores = ", ".join(f"{change.where} {number(change.last.value)}" for change in evaluated)
    at = f" at iteration {evaluated[0].last.iteration}, the only evaluation" if evaluated else ""
    reward = _train_reward(log)
    told = f"training reward {from_to(*reward)}" if reward else ""
    return "; ".join(filter(None, [scores + at, told]))


def _train_reward(log: Log) -> tuple[float, float] | None:
    """Mean reward over the first and the last tenth of training."""
    values = [point.value for point in log.series("train/reward_mean")]
    tenth = max(1, len(values) // 10)
    return (fmean(values[:tenth]), fmean(values[-tenth:])) if len(values) > 1 else None


def _effort(log: Log) -> str:
    seconds = log.elapsed()
    return plural(log.trained(), "iteration") + (f" in {duration(seconds)}" if seconds else "")


def _caveats(log: Log, config: Mapping[str, Any], found: list[Change], compared: list[Change]) -> list[str]:
    planned, reward = find(config, "iterations"), _train_reward(log)
    notes = [*_alarms(log, config), *filter(None, map(_peak, compared)), *_paid(found)]
    if reward and reward[1] > reward[0] and compared and max(change.moved for change in compared) < 0:
        notes.append(f"The training reward rose meanwhile, {from_to(*reward)}: it is probably being gamed.")
    if isinstance(planned, int) and 0 < log.trained() < planned:
        notes.append(f"Still going, or stopped early: {log.trained()} of {planned} iterations.")
    return notes


def _alarms(log: Log, config: Mapping[str, Any]) -> Iterator[str]:
    """The last alarm in full, which others there were, and what to do about them."""
    at = [point.iteration for point in log.series(ALARMS) if point.value > 0]
    told = alarm(log.at(at[-1]), find(config, "rewards"), find(config, "eval_rewards")) if at else None
    if told:
        fell = " and ".join(f"{_moved(one)}" for one in told.fell)
        earlier = f" Earlier alarms: iteration {', '.join(map(str, at[:-1]))}." if len(at) > 1 else ""
        watched = ", ".join(dict.fromkeys(one.score for one in told.fell))
        yield f"Alarm at iteration {at[-1]}: {fell}, while {_moved(told.rose)}.{earlier}"
        yield (
            "An alarm means that a trained score rose and a watched score fell, both beyond chance: the model may be "
            "earning reward with worse pictures. Compare the pictures on this page. If they did get worse, use an "
            f"earlier checkpoint, and train again with a lower learning rate or with {watched} among the rewards."
        )


def _moved(one: Moved) -> str:
    change, *ends = (abs(value) for value in (one.change, one.low, one.high))
    by, low, high = (number(value, max(ends)) for value in (change, min(ends), max(ends)))
    return f"{one.score} on {one.eval_set} {'rose' if one.change > 0 else 'fell'} by {by} (95 %: {low} to {high})"


def _peak(change: Change) -> str | None:
    lost = abs(change.best.value - change.last.value)
    if change.best == change.first or lost <= max(change.noise, PEAK_TOLERANCE * abs(change.best.value)):
        return None
    fall = from_to(change.best.value, change.last.value)
    return f"It had been better at iteration {change.best.iteration}: {change.where} {fall}."


def _paid(found: list[Change]) -> Iterator[str]:
    """The watched scores that got worse by more than the tolerance, one sentence for each score."""
    paid = [change for change in found if change.kind == "watched" and not change.name.tag and change.moved < 0]
    paid = [change for change in paid if abs(change.delta) > WATCHED_TOLERANCE * abs(change.first.value)]
    for score, group in groupby(sorted(paid, key=_score), key=_score):
        told = ", ".join(f"{change.values} on {change.name.eval_set}" for change in group)
        yield f"{score}, which is watched and not trained, fell by more than {WATCHED_TOLERANCE:.0%}: {told}."
