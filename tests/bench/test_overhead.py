"""What the loop costs beyond its network calls is measured on the loop's own pieces."""

import json
from dataclasses import replace

import pytest
import torch

from dgpo.bench.overhead import measure_overhead, measured
from dgpo.data.prompts import load_prompts
from dgpo.recipes import recipe
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.draw import at_rollout_size
from dgpo.training.setup import load


@pytest.mark.slow
def test_time_and_memory_of_an_iteration_are_compared_with_its_bare_calls(tmp_path, capsys):
    small = replace(recipe("tiny"), num_groups=2, group_size=2)
    small = replace(small, sampling=replace(small.sampling, num_inference_steps=2))
    result = measure_overhead(small, 2, tmp_path / "results" / "overhead.json")
    assert json.loads((tmp_path / "results" / "overhead.json").read_text()) == result
    assert len(result["rounds"]) == 2
    assert (small.redraw_groups, result["config"]["redraw_groups"]) == (1, 0), "scores do not decide what is to do"
    for row in result["rounds"]:
        assert row["ratios"]["wall"] == row["iteration"]["wall"] / row["bare"]["wall"]
        assert row["phases"].keys() == {"time/rollout", "time/reward", "time/update", "time/reward_busy"}
        parts = sum(seconds for phase, seconds in row["phases"].items() if phase != "time/reward_busy")
        assert parts <= row["iteration"]["wall"]
    memory = result["memory"]
    assert memory["iteration"] > 4 * 253_952 * 4  # two sets of adapters and two moments
    assert memory["ratio"] == memory["iteration"] / memory["needed"] < 1.2
    assert "median ratio" in capsys.readouterr().out


class Heard(Stopwatch):
    """Counts updates. One that measures memory by phase forgets the peak of the phases before."""

    updates = 0

    def phase(self, name):
        self.updates += name == "update"
        return super().phase(name)


@pytest.mark.slow
def test_the_peak_of_an_iteration_is_no_phases_peak():
    small = replace(recipe("tiny"), num_groups=2, group_size=2, train_images=None, redraw_groups=0, dtype="fp32")
    small = replace(small, sampling=replace(small.sampling, num_inference_steps=2))
    model = at_rollout_size(load(small, torch.device("cpu")), small.sampling)
    clock = Heard(model.device)
    measured(small, model, load_prompts("shapes:seen:colors"), 1, clock)
    assert clock.updates == 2, "to warm up, and in the round; not while memory is measured"
