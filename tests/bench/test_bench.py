"""The benchmark runs what is missing and nothing twice, and its page says what the results hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgpo.bench import CONTENDERS, Plan, bench, plan, run, write_page
from dgpo.bench.page import Curve, read_rows, speed_up, time_to
from dgpo.config import from_dict, to_dict
from dgpo.errors import UserError
from dgpo.report.grids import write_samples
from dgpo.train import Result

MACHINE = {"platform": "an OS", "cpus": 2, "torch_threads": 2, "gpus": []}
ENVIRONMENT = {"machine": MACHINE, "torch": "2.13.0", "command": "secret", "dgpo": "0.1.0"}


@pytest.fixture
def trained(monkeypatch):
    """Stands for training: leaves the run folder of a run whose score rises with its learning rate, at once."""
    started = []

    def fake(config, resume=False):
        started.append(config)
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(json.dumps(to_dict(config)))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        rows = [
            {"iteration": i, "train/reward_mean": 0.3 + i * 10 * config.optimizer.lr, "time/elapsed": 60.0 * i}
            for i in range(1, 6)
        ]
        if config.eval_every:
            for i, score in ((0, 0.4), (5, 0.4 + 100 * config.optimizer.lr)):
                row = {"iteration": i, "time/elapsed": 60.0 * i}
                rows.append(row | {f"eval/{s}/shapes_strict": score for s in config.eval_prompts})
            write_samples(folder, 5, torch.rand(2, 3, 8, 8), ["a circle", "a star"])
        (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return Result(folder, 5, {}, False)

    monkeypatch.setattr(run, "train", fake)
    return started


def test_every_contender_shares_what_must_be_equal():
    base = CONTENDERS["dgpo"]()
    for name in CONTENDERS:
        config = plan.config_of(name, 1e-4, 7, 20)
        assert from_dict(to_dict(config)) == config
        assert (config.seed, config.optimizer.lr, config.optimizer.decay_steps) == (7, 1e-4, 20)
        for field in ("model", "prompts", "rewards", "eval_prompts", "eval_rewards", "num_groups", "group_size"):
            assert getattr(config, field) == getattr(base, field), (name, field)
        assert config.sampling == base.sampling


def test_the_rate_that_earned_most_in_the_search_runs_every_seed(trained, tmp_path):
    assert bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))
    assert [(c.optimizer.lr, c.seed, c.max_minutes) for c in trained] == [
        (3e-4, 100, 4.0),
        (1e-3, 100, 4.0),
        (3e-3, 100, 4.0),
        (3e-3, 0, 13.0),
        (3e-3, 1, 13.0),
    ]
    assert all(c.eval_every == 0 for c in trained[:3]), "the search sees the train list only"


@pytest.mark.parametrize(("name", "steps"), [("awm", 13), ("flow_grpo", 26), ("dgpo_two_updates", 26)])
def test_the_rate_falls_over_the_run_at_the_pace_of_the_search(name, steps, trained, tmp_path):
    """The search made an iteration a minute, whose optimizer steps are the contender's own."""
    bench(Plan(only=(name,), seeds=(0,), out=str(tmp_path)))
    assert [c.optimizer.decay_steps for c in trained] == [0, 0, 0, steps]


def test_an_extra_takes_the_rate_that_dgpo_found(trained, tmp_path):
    assert bench(Plan(only=("dgpo", "dgpo_half_images"), seeds=(0,), out=str(tmp_path)))
    assert [c.seed for c in trained] == [100, 100, 100, 0, 0], "one search for both"
    assert trained[-1].optimizer.lr == trained[-2].optimizer.lr
    assert (trained[-2].train_images, trained[-1].train_images) == (None, 6)


def test_a_finished_run_is_not_run_again(trained, tmp_path):
    options = Plan(only=("awm",), seeds=(0,), out=str(tmp_path))
    bench(options)
    count = len(trained)
    assert bench(options)
    assert len(trained) == count
    (run.results(tmp_path) / "awm-lr0.003-seed0.json").unlink()
    assert bench(replace(options, only=("awm",)))
    assert len(trained) == count + 1
    assert trained[-1].seed == 0


def test_the_budget_starts_no_run_that_would_end_too_late(trained, tmp_path, capsys):
    options = Plan(only=("awm",), seeds=(0,), budget_minutes=10.0, out=str(tmp_path))
    assert not bench(options), "the search fits, a run of 13 minutes does not"
    assert len(trained) == 3
    assert "call again" in capsys.readouterr().out


def test_the_page_shows_contenders_scores_and_pictures(trained, tmp_path):
    bench(Plan(only=("dgpo", "flow_grpo"), seeds=(0, 1, 2), out=str(tmp_path)))
    text = write_page(tmp_path).read_text()
    assert "0.400 → 0.700 ± 0.000" in text
    assert text.count("data:image/png;base64,") == 2
    assert text.count("<svg") == 4
    assert "secret" not in text
    assert "2 CPU cores, 2 threads, no GPU, torch 2.13.0" in text
    assert "5 min (3/3)" in text, "0.7 is reached with the last evaluation"
    with pytest.raises(UserError, match="no finished run"):
        write_page(tmp_path / "elsewhere")


def test_times_to_a_score_are_read_between_evaluations(trained, tmp_path):
    curve = Curve([0.0, 60.0, 120.0], [0, 10, 20], [0.2, 0.4, 0.8])
    assert time_to(curve, 0.1) == 0.0
    assert time_to(curve, 0.5) == pytest.approx(75.0)
    assert time_to(curve, 0.9) is None
    bench(Plan(only=("dgpo", "flow_grpo"), seeds=(0,), out=str(tmp_path)))
    fast, slow = read_rows(tmp_path)
    assert speed_up(fast, slow) == [pytest.approx(1.0)], "both rise alike here"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"only": ("dpgo",)}, "Did you mean 'dgpo'"), ({"seeds": ()}, "seeds is empty"), ({"minutes": 0.0}, "above 0")],
)
def test_plans_that_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        Plan(**options)
