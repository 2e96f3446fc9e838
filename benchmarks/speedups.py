"""Whether torch.compile, larger micro-batches and inference mode make the embedded model faster.

    python benchmarks/speedups.py --rounds 7

One forward of a rollout (no gradient, 48 rows) under `no_grad`, under `inference_mode` and with compiled blocks, and
the forwards and backwards of 144 rows in micro-batches of 16, 48 and 144, and of 48 with compiled blocks. Rounds take
turns, so that what disturbs one disturbs all; times are CPU times of the process, ratios are of medians. The first
call of a compiled variant, by the clock, is what compiling costs. Writes benchmarks/results/speedups.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgpo.models.configured import load_configured
from dgpo.recipes import recipe
from dgpo.run import folder as runfolder

RESULTS = Path(__file__).parent / "results"
IMAGES, ROWS = 144, 48


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    config = replace(recipe("tiny"), device="cpu")
    models: dict[bool, Any] = {c: load_configured(replace(config, compile=c), {"ref"}) for c in (False, True)}
    cond = models[False].encode(["a red circle"]).repeat(IMAGES)
    x, t = torch.randn(IMAGES, *models[False].latent_shape), torch.rand(IMAGES)

    def sampled(weights: str, compile: bool = False, mode: Callable[[], Any] = torch.no_grad) -> Callable[[], None]:
        def call() -> None:
            with mode():
                models[compile].velocity(x[:ROWS], t[:ROWS], cond[:ROWS], weights=weights)

        return call

    def trained(rows: int, compile: bool = False) -> Callable[[], None]:
        def call() -> None:
            for start in range(0, IMAGES, rows):
                part = slice(start, start + rows)
                models[compile].velocity(x[part], t[part], cond[part]).square().mean().backward()

        return call

    calls = {
        "policy, no_grad": sampled("policy"),
        "policy, inference_mode": sampled("policy", mode=torch.inference_mode),
        "policy, compiled": sampled("policy", compile=True),
        "ref, no_grad": sampled("ref"),
        "ref, compiled": sampled("ref", compile=True),
        "trained, 48 rows": trained(48),
        "trained, 16 rows": trained(16),
        "trained, 144 rows": trained(144),
        "trained, 48 rows, compiled": trained(48, compile=True),
    }
    first = {name: timed(call, time.perf_counter) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call, time.process_time))
    median = {name: statistics.median(values) for name, values in times.items()}
    base = {"policy": "policy, no_grad", "ref": "ref, no_grad", "trained": "trained, 48 rows"}
    record = {
        "environment": runfolder.conditions(),
        "over_plain": {name: median[name] / median[base[name.partition(",")[0]]] for name in calls},
        "first_call_seconds": {name: seconds for name, seconds in first.items() if "compiled" in name},
        "seconds": times,
    }
    (RESULTS / "speedups.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("over_plain", "first_call_seconds")}, indent=1))


def timed(call: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


if __name__ == "__main__":
    main()
