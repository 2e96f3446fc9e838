"""THE LOOP: Direct Group Preference Optimization and its peers, from a config to a better model.

    for every iteration:
        prompts -> a group of images each, by a deterministic solver -> rewards -> advantages      (sources.py)
            or, offline, such groups from a dataset
        for every update:                                                                           (update.py)
            for every drawn (t, noise): velocities of ref, old and policy -> the algorithm's loss -> backward
            clip, step, follow with old and ema
        log, now and then evaluate and save                                                         (running.py)

What a run needs is checked before anything is written (setup.py). A run that is killed and resumed repeats bit for bit
on one machine. What stops a run loses nothing: Ctrl-C saves after the iteration, and so does an alarm under
`stop_on_alarm`; a scheduler's signal saves within `grace_seconds` (run/grace.py). Whatever fails before the first step
of an iteration, the iterations before it are saved as a checkpoint like any other, and `resume` goes on from there
(rescue.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from dgpo import distributed
from dgpo.config import AUTO, Config
from dgpo.config_checks import require_complete
from dgpo.models import VelocityModel
from dgpo.rewards.base import Reward
from dgpo.run.callbacks import Callback
from dgpo.run.folder import reading_of
from dgpo.run.interrupt import Interrupt
from dgpo.training.metrics import describe
from dgpo.training.requeue import created_or_continued
from dgpo.training.running import Result, start
from dgpo.training.setup import prepare


def train(
    config: Config,
    *,
    model: VelocityModel | None = None,
    reward_functions: Mapping[str, Reward] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
) -> Result:
    """Run `config`, or with `resume` continue the run in `config.out`, and return where it ended.

    resume: "auto" continues the run if there is one, and creates it otherwise; of one that has finished it says so
    model: used instead of loading `config.model`
    reward_functions: functions for names in `config.rewards` and `config.eval_rewards`
    callbacks: hear of the run's events, after the console, the trackers and the report
    overwrite: where an old run has the folder, move it aside to FOLDER-1 or the next free number, and say so; without
        `config.out` the folder is then runs/NAME. Nothing but a run is moved, and no run in progress
    Raises UserError for bad input before anything is written, and RunFailed (RewardError, NonFiniteError, or with
    whatever was raised as its cause) after saving the state. A run that was killed before its first checkpoint is
    resumed from its beginning.
    """
    with Interrupt() as interrupt:
        if resume == AUTO and not overwrite:
            require_complete(config, model is not None)
            config, resume, ended = created_or_continued(config)
            if ended is not None:
                return ended
        with reading_of(config.out if resume else None):
            setup = prepare(config, model, reward_functions or {}, bool(resume), overwrite)
        with start(setup, callbacks, interrupt) as run:
            while not run.finished():  # evaluates, saves, looks for Ctrl-C
                rollout = run.source.next(run.iteration)
                run.callbacks.on_rollout(run, rollout)
                run.advance(describe(rollout, run.config) | run.improve(rollout))
        distributed.leave_at_exit()
        return run.result()
