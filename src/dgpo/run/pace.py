"""How far a run is, and how long it will go on: what the console says of it, and how often."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from dgpo import distributed
from dgpo.config import Config
from dgpo.utils.people import WAITING
from dgpo.utils.progress import UNITS


class TimeLeft:
    """Estimates what is left of a run. Iterations take as long as the last ones, evaluations as long as the last.

    Iterations that measure the gradient noise scale take longer, the first one of all above all: each kind is timed
    apart. The first iteration, in which everything is slow once, counts only until another of its kind was timed.
    """

    def __init__(
        self,
        config: Config,
        evaluations_ahead: Callable[[int, int], int],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """evaluations_ahead: counts those to come once an iteration is done, in a run that ends with another"""
        self._config, self._evaluations_ahead, self._now = config, evaluations_ahead, now
        self._iterations: dict[bool, deque[float]] = {kind: deque(maxlen=10) for kind in (False, True)}
        """Seconds; True: of those that measure the noise scale."""
        self._first: bool | None = None  # the kind of the first, while its seconds still count
        self._end = config.iterations
        self._iteration = 0
        self._began: float | None = None  # when the evaluation that no iteration has followed yet did
        self.evaluation: float | None = None  # seconds that the last one took, with what is written after it

    @property
    def known(self) -> bool:
        """Whether an iteration was timed."""
        return any(self._iterations.values())

    @property
    def exact(self) -> bool:
        """Whether an iteration was timed that is as most of the others. Before, what is left is known to be less."""
        return bool(self._iterations[False]) or self._share() == 1

    @property
    def iteration(self) -> float:
        """Seconds of an iteration, mean over those to come. Needs a known one."""
        means = {kind: sum(times) / len(times) for kind, times in self._iterations.items() if times}
        plain, measuring = (means.get(kind, means.get(not kind, 0.0)) for kind in (False, True))
        return plain + self._share() * (measuring - plain)

    def evaluating(self) -> None:
        """An evaluation is under way."""
        self._began = self._now() if self._began is None else self._began

    def iterated(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take the times of an iteration that is done."""
        seconds, measured = metrics["time/iteration"], "train/grad_noise_scale" in metrics
        if self._first == measured:
            self._iterations[measured].clear()
            self._first = None
        elif not self.known:
            self._first = measured
        self._iterations[measured].append(seconds)
        if self._began is not None:
            self.evaluation, self._began = max(0.0, self._now() - self._began - seconds), None
        self._iteration, self._end = iteration, self._config.iterations
        if self._config.max_minutes is not None:
            rest = max(0.0, 60 * self._config.max_minutes - metrics["time/elapsed"])
            self._end = min(self._end, iteration + math.ceil(rest / self.iteration))

    def __str__(self) -> str:
        """Such as "4 min left"; evaluations are named apart as long as none was timed."""
        evaluations = self._evaluations_ahead(self._iteration, self._end)
        training = (self._end - self._iteration) * self.iteration
        most = "" if self.exact or not training else "at most "
        if evaluations and self.evaluation is None:
            return f"{most}{span(training)} and {evaluations} evaluation{'s' * (evaluations > 1)} left"
        return f"{most}{span(training + evaluations * (self.evaluation or 0.0))} left"

    def _share(self) -> float:
        """Of the iterations to come, those that measure the noise scale; none in a run that has measured none yet."""
        every = self._config.noise_scale_every
        return min(1.0, self._config.updates_per_rollout / every) if self._iterations[True] and every else 0.0


class PhaseProgress:
    """What there is to say of the phase under way, and when a file that keeps every line gets one.

    A phase that is counted is announced when the run first comes to it. After that there are at least ten seconds
    between two lines, and in a long phase a quarter of it or a minute.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._announced = now, set[str]()
        self._phase, self._began, self._quarter, self._last = "", 0.0, 0, -math.inf

    def text(self, phase: str, done: int, total: int, foretell: bool) -> str:
        """Such as "128/576 images, 40 s left". foretell: estimate the time from what is done of the phase."""
        if phase != self._phase or not done:
            self._phase, self._began, self._quarter = phase, self._now(), 0
        if not total:
            return ""
        text = f"{done}/{total} {UNITS.get(phase, '')}".rstrip()
        if phase == WAITING:  # for as long as people like, and all processes alike
            return text
        if distributed.world_size() > 1:
            text += f" of process 1 of {distributed.world_size()}"
        left = (self._now() - self._began) / done * (total - done) if done else 0.0
        return f"{text}, {span(left)} left" if foretell and left >= 10 else text

    def due(self, phase: str, done: int, total: int) -> bool:
        """Whether a line is due. Call `text` before."""
        if total and phase not in self._announced:
            self._announced.add(phase)
            return True
        since, quarter = self._now() - self._last, 4 * done // total if total else 0
        if phase == WAITING:
            since = min(since, 59)  # while nobody answers there is nothing to say
        if since < 10 or (total and done == total) or (quarter == self._quarter and since < 60):
            return False
        self._quarter = quarter
        return True

    def printed(self) -> None:
        """Note that a line was printed, of whatever."""
        self._last = self._now()


def span(seconds: float) -> str:
    """Such as 2.5 s, 45 s, 12 min or 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
