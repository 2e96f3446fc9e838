"""Runs of two processes lose one or both, by SIGKILL or SIGTERM, at random moments, and are started again.

    python benchmarks/faults/cluster_kills.py [KILLS] [SEED]     writes benchmarks/results/faults/cluster_kills.json

Every start is the same command, with `--resume auto`, until the run has had its share of kills; then it goes on to its
end. It must end as the run that was never killed, bit for bit, and no process may outlive a lost one by more than
LIMIT seconds. The moment is that of the first process's last word on its progress. The file is written after every run,
and a script that is started again goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "tests" / place) for place in ("helpers", "faults")]

import children  # noqa: E402
import kills  # noqa: E402
from runs import assert_same_run, run, save_pipeline, write_pictures  # noqa: E402

from dgpo import Callback, Config  # noqa: E402
from dgpo.errors import RunFailed, UserError  # noqa: E402
from dgpo.run.interrupt import Stopped  # noqa: E402
from dgpo.utils.files import whole  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "faults" / "cluster_kills.json"
PROCESSES = 2
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {},
    "offline": {},
    "sharded": {"shard": "full"},
    "sharded full": {"shard": "full", "finetune": "full"},
    "background": {"background_saving": True},
    "sharded background": {"shard": "full", "finetune": "full", "background_saving": True},
}
"""Kind of run -> fields that differ from `kills.config_of` of that name."""
BLOWS = ("SIGKILL one", "SIGKILL all", "SIGTERM one", "SIGTERM all")
GRACE = (0.0, 30.0)
"""Seconds: in none nothing fits, and what is in progress is dropped; in 30 an iteration of this size always fits."""
LIMIT = 60.0


class Progress(Callback):
    """Writes what the first process is at beside its run folder."""

    def on_progress(self, run: Any, phase: str, done: int, total: int) -> None:
        if os.environ["RANK"] == "0":
            with whole(place_of_phase(run.config)) as unfinished:
                unfinished.write_text(phase)


def place_of_phase(config: Config) -> Path:
    return Path(f"{config.out}.phase")


def process(config: Config, environment: dict[str, str]) -> None:
    """One rank, which ends with the exit code of the command line."""
    os.environ.update(environment)
    log = os.open(f"{config.out}.rank{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        result = run(config, resume="auto", callbacks=[Progress()])
    except (RunFailed, UserError) as error:
        print(f"dgpo: {error}", flush=True)
        os._exit(2 if isinstance(error, UserError) else 1)
    except Stopped as stop:
        os._exit(stop.code)
    os._exit(75 if result.requeue else 0)


def start(context: Any, config: Config) -> list[Any]:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    place_of_phase(config).write_text("starting")
    ranks = []
    for rank in range(PROCESSES):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(context.Process(target=process, args=(config, environment)))
        ranks[-1].start()
    return ranks


def ended(ranks: list[Any], seconds: float) -> bool:
    """Whether all end in time; those that do not are killed."""
    until = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    late = [rank for rank in ranks if rank.is_alive()]
    for rank in late:
        rank.kill()
        rank.join()
    return not late


def strike(ranks: list[Any], blow: str, rng: random.Random) -> None:
    name, whom = blow.split()
    for rank in ranks if whom == "all" else [rng.choice(ranks)]:
        with contextlib.suppress(ProcessLookupError):  # the others may have ended by themselves
            os.kill(rank.pid, signal.Signals[name])


def attempt(context: Any, config: Config, seconds: float, blow: str, rng: random.Random) -> dict[str, Any] | None:
    """Start the run, and strike within so many seconds of work; one time in eight before that, while it starts.

    None where the run had ended by then, so that nobody was killed.
    """
    ranks = start(context, config)
    if rng.random() > 1 / 8:
        await_work(config, ranks)
    if wait_for(ranks, rng.uniform(0.0, 0.8) * seconds):
        require(config, ranks, (0,))
        return None
    phase = place_of_phase(config).read_text()
    strike(ranks, blow, rng)
    in_time = ended(ranks, LIMIT)
    # 0: in its last moments; 1: lost the other; 2: waited in vain for it to begin; 75: told to stop; negative: killed,
    # or not yet listening to signals
    require(config, ranks, (0, 1, 2, 75, -signal.SIGKILL, -signal.SIGTERM))
    if blow.startswith("SIGKILL") and all(rank.exitcode != -signal.SIGKILL for rank in ranks):
        return None  # they had ended by themselves in the meantime
    return {"blow": blow, "phase": phase, "in_time": in_time, "codes": sorted(str(rank.exitcode) for rank in ranks)}


def await_work(config: Config, ranks: list[Any]) -> None:
    """Until the run says that it evaluates, samples or reads, or has ended."""
    while place_of_phase(config).read_text() == "starting" and any(rank.is_alive() for rank in ranks):
        time.sleep(0.02)


def wait_for(ranks: list[Any], seconds: float) -> bool:
    """Whether the ranks end within the time; they are let be where they do not."""
    until = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    return not any(rank.is_alive() for rank in ranks)


def require(config: Config, ranks: list[Any], codes: tuple[int, ...]) -> None:
    for number, rank in enumerate(ranks):
        if rank.exitcode not in codes:
            said = Path(f"{config.out}.rank{number}.log").read_text()[-2000:]
            raise RuntimeError(f"{config.out}: rank {number} ended with code {rank.exitcode}:\n{said}")


def config_of(kind: str, model: Path, out: Path) -> Config:
    """Saved every second iteration, so that a signal has something to save in between."""
    return replace(kills.config_of(kind, model, out), checkpoint_every=2, rank_timeout_minutes=0.5, **KINDS[kind])


def undisturbed(context: Any, model: Path, folder: Path) -> dict[str, tuple[Path, float]]:
    """Kind -> the run that nobody kills, and the seconds that it works."""
    found = {}
    for kind in KINDS:
        config = config_of(kind, model, folder / f"unhurt-{kind}")
        ranks = start(context, config)
        await_work(config, ranks)
        started = time.monotonic()
        ended(ranks, 600)
        require(config, ranks, (0,))
        found[kind] = Path(config.out or ""), time.monotonic() - started
    return found


def trial(
    context: Any, number: int, seed: int, model: Path, folder: Path, unhurt: dict[str, tuple[Path, float]]
) -> dict[str, Any]:
    """One run, killed four times at most."""
    rng, kind = random.Random(f"{seed} {number}"), list(KINDS)[number % len(KINDS)]
    other, seconds = unhurt[kind]
    config = config_of(kind, model, folder / f"run-{number}")
    strikes = []
    for _ in range(8):  # one that comes too late is none
        if len(strikes) < 4:
            own = replace(config, grace_seconds=rng.choice(GRACE))
            done = attempt(context, own, seconds, rng.choice(BLOWS), rng)
            strikes += [done] if done else []
    ranks = start(context, config)
    ended(ranks, 600)
    require(config, ranks, (0,))
    try:
        assert_same_run(Path(config.out or ""), other, kills.ITERATIONS)
        problem = None
    except AssertionError as error:
        problem = str(error)[:200]
    return {"kind": kind, "kills": strikes, "problem": problem}


def summary(seed: int, trials: list[dict[str, Any]]) -> dict[str, Any]:
    every = [kill for row in trials for kill in row["kills"]]
    return {
        "seed": seed,
        "kills": len(every),
        "runs": len(trials),
        "runs_equal_to_never_killed": sum(row["problem"] is None for row in trials),
        "processes_ended_in_time": sum(kill["in_time"] for kill in every),
        "kills_of_kind": dict(Counter(row["kind"] for row in trials for _ in row["kills"])),
        "blows": dict(Counter(kill["blow"] for kill in every)),
        "phases": dict(Counter(kill["phase"] for kill in every)),
        "exit_codes": dict(Counter(" ".join(kill["codes"]) for kill in every)),
        "problems": [row["problem"] for row in trials if row["problem"]],
        "trials": [{**row, "kills": [[*kill.values()] for kill in row["kills"]]} for row in trials],
    }


def stored(seed: int) -> list[dict[str, Any]]:
    """The trials of an earlier start with this seed."""
    if not RESULT.exists():
        return []
    told = json.loads(RESULT.read_text())
    names = ("blow", "phase", "in_time", "codes")
    rows = [{**row, "kills": [dict(zip(names, kill)) for kill in row["kills"]]} for row in told["trials"]]
    return rows if told["seed"] == seed else []


def main(wanted: int = 100, seed: int = 0) -> int:
    context, trials = children.context(), stored(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = save_pipeline(folder / "pipeline" / "tiny")
        write_pictures(model.parent / "pictures")
        unhurt = undisturbed(context, model, folder)
        while sum(len(row["kills"]) for row in trials) < wanted:
            trials.append(trial(context, len(trials), seed, model, folder, unhurt))
            print(trials[-1], flush=True)
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            with whole(RESULT) as unfinished:
                unfinished.write_text(json.dumps(summary(seed, trials), indent=1) + "\n")
    found = summary(seed, trials)
    return int(
        found["runs_equal_to_never_killed"] != found["runs"] or found["processes_ended_in_time"] != found["kills"]
    )


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
