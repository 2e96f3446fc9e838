"""What a run takes on one GPU at real size: benchmarks/gpu.sh real.

Weights are random, since the time and the memory of a network do not depend on them: the real classes in their
published shapes (real_shapes.py), built on the device. Nothing is fetched.

OUT/tests.json      how tests/gpu ended
OUT/sd35m.json      Stable Diffusion 3.5 medium: the authors' settings with two groups, 512 pixels
OUT/flux_dev.json   FLUX.1 [dev], the recipe's settings with one group of four
OUT/demo.json       the demo, whose page is OUT/demo.html
OUT/page.md         all of it as tables

Each part is a process of its own, which is stopped when its time is up; the others go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dgpo.bench.overhead import measured
from dgpo.config import Config
from dgpo.data.prompts import load_prompts
from dgpo.models import FAMILIES
from dgpo.models.autoencoder import compute_in
from dgpo.models.pipeline import PipelineModel
from dgpo.plan.estimates import Estimate, estimate
from dgpo.plan.gpus import GPUS
from dgpo.plan.speed import seconds
from dgpo.recipes import recipe
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.schedule import loaded_sets
from dgpo.utils.devices import DTYPES, allow_tf32
from dgpo.utils.imports import import_named
from real_shapes import made, save_configs

REPO = Path(__file__).parents[1]
PARTS = {"tests": 170, "sd35m": 120, "flux_dev": 140, "demo": 120}
"""Seconds that each may take at most."""
FEWER: dict[str, dict[str, int]] = {"sd35m": {"num_groups": 2}, "flux_dev": {"num_groups": 1, "group_size": 4}}
"""In the place of eight groups of 16, which would take minutes."""
MIB = 2**20


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True, help="folder for what is not kept")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--limit", type=float, default=530, help="seconds for everything")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options.add_argument("--here", action="store_true", help="measure the one part in this process")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.here:
        (name,) = given.parts
        found = {"tests": run_tests, "demo": run_demo}.get(name, partial(at_real_size, name))(given)
        (given.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    ends = time.monotonic() + given.limit
    failed = [name for name in given.parts if not _apart(name, given, ends)]
    (given.out / "page.md").write_text("\n".join(page(given.out)) + "\n", encoding="utf-8")
    print((given.out / "page.md").read_text(encoding="utf-8"))
    return 1 if failed else 0


def _apart(name: str, given: argparse.Namespace, ends: float) -> bool:
    """Measure a part in its own process; one that failed or was late says so in its file. True: it is measured."""
    limit = min(PARTS[name] if given.device == "cuda" else given.limit, ends - time.monotonic())
    command = [
        sys.executable,
        __file__,
        "--out",
        given.out,
        "--work",
        given.work,
        "--device",
        given.device,
        "--parts",
        name,
        "--here",
    ]
    print(f"== {name}, at most {limit:.0f} s", flush=True)
    process = subprocess.Popen([str(word) for word in command], start_new_session=True)
    try:
        code = process.wait(max(1, limit))
        problem = f"it ended with exit code {code}: see what was printed" if code else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
        problem = f"it was stopped after {limit:.0f} s"
    if problem:
        (given.out / f"{name}.json").write_text(json.dumps({"problem": problem}) + "\n", encoding="utf-8")
    return not problem


def run_tests(given: argparse.Namespace) -> dict[str, Any]:
    """tests/gpu; on a CPU a few of them."""
    words = ["-k", "towers or first_rollout"] if given.device == "cpu" else []
    if given.device == "cuda" and importlib.util.find_spec("xdist"):
        words = ["--numprocesses", "4"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--show-capture=no", *words]
    own = {**os.environ, "DGPO_TEST_DEVICE": given.device, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    log = given.out / "tests.log"  # which is there even if they are stopped
    with log.open("wb") as said:
        ended = subprocess.run(command, cwd=REPO, env=own, stdout=said, stderr=subprocess.STDOUT)
    text = log.read_text(encoding="utf-8", errors="replace")
    print(text[-8000:], flush=True)
    lines = text.splitlines()
    return {
        "summary": next((line.strip("= ") for line in reversed(lines) if " in " in line), text[-300:]),
        "failed": [line for line in lines if re.match(r"(FAILED|ERROR) ", line)],
        "code": ended.returncode,
    }


def run_demo(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe tiny with its evaluations; on a CPU one iteration."""
    run = given.work / "demo"
    words = ["--iterations", "1", "--num-groups", "2", "--eval-every", "0"] if given.device == "cpu" else []
    command = [sys.executable, "-m", "dgpo", "train", "tiny", "--out", str(run), "--overwrite"]
    started = time.monotonic()
    subprocess.run([*command, "--device", given.device, *words], check=True)
    elapsed = time.monotonic() - started
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if (run / "report.html").exists():
        shutil.copy(run / "report.html", given.out / "demo.html")
    kept = ("iteration", "eval/", "reward/", "time/")
    return {
        "seconds": elapsed,
        "environment": json.loads((run / "environment.json").read_text(encoding="utf-8")),
        "rows": [{key: value for key, value in row.items() if key.startswith(kept)} for row in rows],
    }


def at_real_size(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Time and memory by phase against the plan, overhead, and what deterministic kernels cost; tiny on a CPU."""
    place = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    allow_tf32(place)
    folder = given.work / name
    config = settings(name, given.device, folder)
    pipeline = made(name, place)
    save_configs(pipeline, folder)
    model = loaded(pipeline, config, place)
    prompts = load_prompts(config.prompts)
    foreseen = estimate(config, 1, given.device == "cpu", max(prompts.prompts, key=len))
    clock = Peaks(place)
    found = measured(config, model, prompts, 2, clock)
    images = config.num_groups * config.group_size
    return {
        "parameters": {"network": sum(p.numel() for p in model.network.parameters()), "trained": foreseen.trained},
        "images": images,
        "images_per_second": [images / row["iteration"]["wall"] for row in found["rounds"]],
        "memory_by_phase": {**clock.peaks, "planned": foreseen.phases, "unknown": foreseen.unknown},
        "planned_seconds": planned_seconds(foreseen, place),
        "deterministic_over_default": deterministic_cost(model, config, prompts.prompts[0]),
        "decoding": decoding(model, min(8, images)),
        **found,
    }


def settings(name: str, device: str, folder: Path) -> Config:
    """The recipe with fewer groups and a reward without weights."""
    config = recipe({"sd35m": "sd35m_ocr"}.get(name, name))
    config = replace(
        config,
        model=str(folder),
        device=device,
        prompts=("a red cat", "two dogs"),
        rewards={"jpeg_incompressibility": 1.0},
        eval_rewards=(),
        eval_prompts={},
        noise_scale_every=0,
        free_text_encoders=False,  # they are small here
        **FEWER[name],
    )
    if device == "cuda":
        return config
    sizes = {"resolution": 64 if name == "sd35m" else 32, "max_sequence_length": None, "micro_batch_size": 2}
    sampling = replace(config.sampling, num_inference_steps=8, batch_size=2)
    return replace(config, **sizes, group_size=2, sampling=sampling, dtype="fp32")


def loaded(pipeline: Any, config: Config, device: torch.device) -> PipelineModel:
    """As `load_model` makes it of a pipeline that was read."""
    family = import_named(FAMILIES[type(pipeline).__name__], "family")
    return PipelineModel(
        pipeline,
        family(pipeline, config.resolution, config.max_sequence_length),
        lora=config.lora,
        sets=sorted(loaded_sets(config)),
        device=device,
        dtype=DTYPES["bf16" if config.dtype == "bf16" else "fp32"],
        shift=config.sampling.shift,
        gradient_checkpointing=config.gradient_checkpointing,
    )


class Peaks(Stopwatch):
    """A stopwatch that also keeps the peak of memory of each phase, where CUDA counts it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.peaks: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        on_cuda = self._device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        with super().phase(name):
            yield
        if on_cuda:
            self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated(self._device))


def planned_seconds(foreseen: Estimate, device: torch.device) -> dict[str, float]:
    """By phase, for the GPU of the data sheet's name; empty where there is none."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    gpu = next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", name)), None)
    return {} if gpu is None else {phase: max(seconds(work, gpu)) for phase, work in foreseen.work.items()}


def deterministic_cost(model: PipelineModel, config: Config, prompt: str) -> float | str:
    """A trained forward and backward of a micro-batch with kernels that repeat bit for bit, over the usual ones.

    Or which operator has none.
    """
    n = config.micro_batch_size or 1
    cond = model.encode([prompt]).repeat(n)
    x, t = torch.randn(n, *model.latent_shape, device=model.device), torch.rand(n, device=model.device)
    times: dict[bool, float] = {}
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    try:
        for exact in (False, True):
            torch.use_deterministic_algorithms(exact)
            for _ in range(2):  # the first warms up
                clock = Stopwatch(model.device)
                with clock.phase("once"):
                    model.velocity(x, t, cond).square().mean().backward()
                times[exact] = clock.read()["time/once"]
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.use_deterministic_algorithms(False)
    return round(times[True] / times[False], 3)


def decoding(model: PipelineModel, images: int) -> dict[str, Any]:
    """Seconds and peak bytes of decoding so many latents by the VAE in fp32 and in bf16, and how far apart pictures are
    on average, in levels of 255. The last thing that is done with a model: its VAE stays in bf16."""
    x0 = model.init_noise([torch.Generator().manual_seed(seed) for seed in range(images)])
    found: dict[str, Any] = {"images": images}
    pictures = []
    for name in ("fp32", "bf16"):
        if name == "bf16":
            compute_in(model.pipeline.vae, DTYPES[name])
        for _ in range(2):  # the first warms up
            clock = Peaks(model.device)
            with clock.phase("decoding"):
                drawn = model.decode(x0)
        found[name] = {"seconds": clock.read()["time/decoding"], "peak": clock.peaks.get("decoding")}
        pictures.append(drawn)
    found["levels_apart"] = 255 * (pictures[0] - pictures[1]).abs().mean().item()
    return found


def page(out: Path) -> Iterator[str]:
    """Everything as tables; a part that is not there says why."""
    yield "# Runs on one GPU"
    for name in PARTS:
        path = out / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        yield f"\n## {name}\n"
        if "problem" in found:
            yield f"Not measured: {found['problem']}."
        else:
            yield from {"tests": _tests, "demo": _demo}.get(name, _real)(found)


def _tests(found: dict[str, Any]) -> Iterator[str]:
    yield found["summary"] + "\n"
    yield from (f"- {line}" for line in found["failed"])


def _demo(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['seconds']:.0f} s in all on {_machine(found)}; the page is demo.html.\n"
    rows = [row for row in found["rows"] if any(key.startswith("eval/") for key in row)]
    names = [key for key in (rows[0] if rows else {}) if key.startswith("eval/") and key.count("/") == 2]
    yield from _table(["iteration", *names], [[row["iteration"], *(f"{row[n]:.3f}" for n in names)] for row in rows])


def _real(found: dict[str, Any]) -> Iterator[str]:
    config = found["config"]
    yield (
        f"{found['parameters']['network']:,} parameters, {found['parameters']['trained']:,} trained, "
        f"{config['dtype']}, on {_machine(found)}. An iteration: {config['num_groups']} groups of "
        f"{config['group_size']}, {max(found['images_per_second']):.2f} images/s, "
        f"{found['median']['wall']:.3f} times its bare network calls.\n"
    )
    planned, times = found["planned_seconds"], found["rounds"][-1]["phases"]
    memory = found["memory_by_phase"]
    yield from _table(
        ["phase", "seconds", "planned", "MiB", "planned"],
        [
            [
                phase,
                f"{times.get(f'time/{phase}', 0):.2f}",
                f"{sum(planned.get(part, 0) for part in parts):.2f}" if planned else "-",
                f"{memory[phase] / MIB:,.1f}" if phase in memory else "-",
                f"{max(memory['planned'].get(part, 0) for part in peaks) / MIB:,.1f}",
            ]
            for phase, parts, peaks in (
                ("rollout", ("sampling", "decoding"), ("sampling", "decoding")),
                ("update", ("frozen forwards", "forwards and backwards"), ("updating",)),
            )
        ],
    )
    yield f"\nPeak of an iteration {found['memory']['iteration'] / MIB:,.1f} MiB, with prompts encoded before."
    cost = found["deterministic_over_default"]
    yield f"A trained forward and backward with deterministic kernels, over one with the usual ones: {cost}.\n"
    decoded = found["decoding"]
    times = ", ".join(
        f"{name} {decoded[name]['seconds']:.3f} s"
        + (f" and {decoded[name]['peak'] / MIB:,.0f} MiB in all" if decoded[name]["peak"] else "")
        for name in ("fp32", "bf16")
    )
    apart = f"pictures are {decoded['levels_apart']:.2f} levels of 255 apart"
    yield f"Decoding {decoded['images']} images: {times}; {apart}."


def _machine(found: dict[str, Any]) -> str:
    machine = found["environment"]["machine"]
    return ", ".join(machine["gpus"]) or machine["cpu"]


def _table(head: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
