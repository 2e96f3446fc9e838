"""A run that is killed and resumed equals the run never killed, bit for bit; Ctrl-C loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import MODES, assert_same_run, colour, newest, run, small
from safetensors.torch import load_file

from dgpo.errors import UserError
from dgpo.run.interrupt import Stopped

ITERATIONS = 4


@pytest.fixture(scope="module")
def processes():
    """Real processes, forked from one that has imported everything and computed nothing: imports would take longest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield context


@pytest.fixture
def config(tiny_folder, tmp_path):
    """Everything on that a resume must bring back: evaluations, the noise scale, averages, rollouts by `old`."""
    (tmp_path / "eval.txt").write_text("a cup\ngreen\n")

    def made(name, mode, finetune):
        return small(
            tiny_folder,
            tmp_path / name,
            mode,
            finetune=finetune,
            iterations=ITERATIONS,
            eval_every=2,
            eval_prompts={"seen": str(tmp_path / "eval.txt")},
            eval_images_per_prompt=1,
            num_samples=1,
            noise_scale_every=2,
            keep_checkpoints=1,
        )

    return made


def kill_amid(process, config, moment):
    """SIGKILL a moment after so many rows of metrics have been written; True if that was before the end."""
    count, pause = moment
    metrics = Path(config.out) / "metrics.jsonl"
    process.start()
    while process.is_alive():
        begun = metrics.is_file()  # it is made after the first checkpoint
        if begun and metrics.read_text().count("\n") >= count:
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_killed_twice_and_resumed_equals_never_killed(processes, config, mode, finetune):
    """SIGKILL at two seeded moments: the rows that are waited for, and up to an iteration's time after them."""
    unhurt, hurt = config("unhurt", mode, finetune), config("hurt", mode, finetune)
    process = processes.Process(target=run, args=(unhurt,))
    process.start()
    process.join()
    assert process.exitcode == 0
    rng = random.Random(f"{mode} {finetune}")
    moments = [(rng.randint(0, 3), rng.uniform(0, 0.15)), (rng.randint(4, 5), rng.uniform(0, 0.15))]
    kills = 0
    for attempt, moment in enumerate(moments):
        kills += kill_amid(processes.Process(target=run, args=(hurt, attempt > 0)), hurt, moment)
    assert kills > 0
    process = processes.Process(target=run, args=(hurt, True))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_same_run(Path(hurt.out), Path(unhurt.out), ITERATIONS)


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_iterations(config):
    """Two iterations, then two more, equal four: even where only the later ones sample from `old`."""
    whole = config("whole", "cfg", "lora")
    whole = replace(whole, algorithm=replace(whole.algorithm, clip_range=None))
    run(whole)
    parts = replace(whole, out=whole.out.replace("whole", "parts"))
    assert run(replace(parts, iterations=2)).iterations == 2
    result = run(parts, resume=True)
    assert (result.iterations, result.interrupted) == (ITERATIONS, False)
    assert_same_run(result.run, Path(whole.out), ITERATIONS)


def interrupting(at, signals):
    """The colour reward, which at its call number `at` sends this process signals, a second apart.

    It has a thread of its own: the main one must have seen a signal before the next, or the two are one.
    """
    calls = []

    def reward(images, prompts, metadata):
        calls.append(prompts)
        if len(calls) == at:
            for place, number in enumerate(signals):
                time.sleep(min(place, 1))
                os.kill(os.getpid(), number)
        return colour(images, prompts, metadata)

    return {"colour": reward}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_ctrl_c_finishes_the_iteration_and_saves(tiny_folder, tmp_path, number, capfd):
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    before = signal.getsignal(number)
    result = run(config, reward_functions=interrupting(2, [number]))
    assert (result.iterations, result.interrupted) == (2, True)
    assert signal.getsignal(number) == before
    assert "Stopping after this iteration" in capfd.readouterr().err
    assert newest(result.run) == 2
    result = run(config, resume=True)
    assert (result.iterations, result.interrupted) == (3, False)
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(result.run, tmp_path / "unhurt", 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_first_evaluation_a_signal_stops_at_once(tiny_folder, tmp_path, number, capfd):
    (tmp_path / "eval.txt").write_text("a cup\ngreen\na dog\n")
    config = small(tiny_folder, tmp_path / "run", iterations=1, eval_every=1, num_samples=1)
    config = replace(config, eval_prompts={"seen": str(tmp_path / "eval.txt")}, eval_images_per_prompt=1)
    config = replace(config, sampling=replace(config.sampling, batch_size=1))
    with pytest.raises(
        Stopped, match=f"by {number.name} before the first iteration; nothing is lost. Go on with: "
    ) as stop:
        run(config, reward_functions=interrupting(1, [number]))
    assert f"dgpo train --resume {config.out}" in str(stop.value)
    assert stop.value.code == (75 if number == signal.SIGTERM else 130)
    assert "Stopping after this iteration" not in capfd.readouterr().err
    assert not (tmp_path / "run" / "first_evaluation.safetensors").exists()
    assert run(config, resume=True).iterations == 1
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 1)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(config, reward_functions=interrupting(2, [signal.SIGINT, signal.SIGINT]))
    assert signal.getsignal(signal.SIGINT) == before
    assert newest(tmp_path / "run") == 0


def test_ctrl_c_in_the_last_iteration_interrupts_nothing(tiny_folder, tmp_path):
    config = small(tiny_folder, tmp_path / "run", iterations=1)
    result = run(config, reward_functions=interrupting(1, [signal.SIGINT]))
    assert (result.iterations, result.interrupted) == (1, False)
    assert (result.run / "final").is_dir()


def test_a_run_without_a_name_is_called_after_what_it_trains_and_goes_on(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(small(tiny_folder, tmp_path, iterations=1), out=None)
    result = run(config)
    assert result.run == Path("runs/tiny-colour")
    assert "name: tiny-colour\n" in (result.run / "config.yaml").read_text()
    assert run(replace(config, out=str(result.run), iterations=2), resume=True).iterations == 2


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_run_on_a_quantised_base_goes_on(tiny_folder, tmp_path, bits):
    """Bit for bit, but not on another base; its export is the LoRA alone."""
    whole = small(tiny_folder, tmp_path / "whole", iterations=2, base_precision=bits)
    run(whole)
    parts = replace(whole, out=str(tmp_path / "parts"))
    run(replace(parts, iterations=1))
    with pytest.raises(UserError, match="base_precision"):
        run(replace(parts, base_precision="auto"), resume=True)
    assert_same_run(run(parts, resume=True).run, Path(whole.out), 2)
    exported = tmp_path / "whole" / "final" / "pytorch_lora_weights.safetensors"
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(exported))
