"""The benchmark runs what is missing and nothing twice, and its page says what the results hold."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic import make_run

from dgpo.bench import page, plan, run
from dgpo.bench.page import Curve, Row, noise_over_signal, read_rows, time_to, write_page
from dgpo.bench.plan import CONTENDERS, Plan
from dgpo.bench.run import bench
from dgpo.commands.main import main
from dgpo.config import from_dict, to_dict
from dgpo.errors import UserError
from dgpo.report.grids import write_samples
from dgpo.report.page import render
from dgpo.training.loop import Result

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
    """The contender's short run made an iteration a minute, whose optimizer steps are its own."""
    bench(Plan(only=(name,), seeds=(0,), out=str(tmp_path)))
    *short, last = [c.optimizer.decay_steps for c in trained]
    assert (set(short), last) == ({0}, steps)
    assert trained[-2].updates_per_rollout == trained[-1].updates_per_rollout


def test_an_extra_takes_the_rate_that_dgpo_found(trained, tmp_path):
    assert bench(Plan(only=("dgpo", "dgpo_half_images"), seeds=(0,), out=str(tmp_path)))
    assert [c.seed for c in trained] == [100, 100, 100, 0, 100, 0], "one search for both, the extra's pace beside it"
    assert {c.optimizer.lr for c in trained[3:]} == {3e-3}
    assert [c.train_images for c in trained[3:]] == [None, 6, 6]


def test_rates_are_compared_on_the_iterations_that_all_of_them_made(tmp_path):
    """The slow run's last rollouts had other prompts than the fast one's."""
    rewards = {3e-4: [0.1] * 6, 1e-3: [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.9, 0.9, 0.9], 3e-3: [0.9] * 4 + [0.4, 0.2]}
    for lr, values in rewards.items():
        rows = [{"iteration": i + 1, "train/reward_mean": value} for i, value in enumerate(values)]
        (tmp_path / f"awm-lr{lr:g}-seed100.json").write_text(json.dumps({"metrics": rows}))
    found = run.late_rewards(tmp_path, "awm")
    assert found == {3e-4: pytest.approx(0.1), 1e-3: pytest.approx(0.25), 3e-3: pytest.approx(0.3)}
    assert run.best_lr(tmp_path, "awm") == 3e-3


def test_noise_over_signal_pools_the_first_measurements(trained, tmp_path):
    """12 groups, |G|^2 = 2 and tr(Sigma) = 120: seeds saw 5 and -1 of the 2, squared norms of 12."""
    bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))
    (row,) = read_rows(tmp_path)
    assert math.isnan(noise_over_signal(row))
    for seed, signal in enumerate((5.0, -1.0)):
        first = {"iteration": 1, "train/grad_signal": signal, "train/grad_norm": 12**0.5}
        row.runs[seed]["metrics"] = [{"iteration": 0}, first, {"iteration": 6, "train/grad_signal": 1e6}]
    assert noise_over_signal(row) == pytest.approx(120 / 12 / 2)
    row.runs[0]["metrics"][1]["train/grad_signal"] = 1.0
    assert math.isnan(noise_over_signal(row)), "no signal was seen"


def test_lists_may_be_joined_by_commas(trained, tmp_path, capsys):
    assert main(["bench", "--only", "dgpo,awm", "--seeds", "0,2", "--minutes", "5", "--out", str(tmp_path)]) == 0
    assert [(type(c.algorithm).__name__, c.seed) for c in trained if c.seed != 100] == [
        ("DGPO", 0), ("DGPO", 2), ("AWM", 0), ("AWM", 2)
    ]  # fmt: skip


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
    assert "awm-lr0.003-seed0, 13 minutes, would end after the budget of 10; it needs a larger one" in (
        capsys.readouterr().out
    )


def test_a_budget_counts_what_is_left_of_a_run(trained, tmp_path, capsys):
    options = Plan(only=("awm",), seeds=(0,), out=str(tmp_path))
    bench(options)
    (run.results(tmp_path) / "awm-lr0.003-seed0.json").unlink()
    saved = tmp_path / "runs" / "awm-lr0.003-seed0" / "checkpoints" / "iteration-000004"
    saved.mkdir(parents=True)
    assert not bench(replace(options, budget_minutes=8.0)), "4 of 13 minutes are done; the fifth was not saved"
    assert "9 minutes, would end after the budget of 8" in capsys.readouterr().out
    assert bench(replace(options, budget_minutes=10.0))


def test_the_page_shows_contenders_scores_and_pictures(trained, tmp_path):
    bench(Plan(only=("dgpo", "flow_grpo"), seeds=(0, 1, 2), out=str(tmp_path)))
    text = write_page(tmp_path).read_text()
    assert "0.400 → 0.700 ± 0.000" in text
    assert text.count("data:image/png;base64,") == 2
    assert text.count("<svg") == 4
    assert "secret" not in text
    assert "ends with the highest shapes_strict on seen prompts: 0.700, mean over 3 seeds." in text
    style = re.compile("<style>.*</style>", re.DOTALL)
    assert style.findall(text) == style.findall(render(make_run(tmp_path / "run", 4, 2)))
    assert "2 CPU cores, 2 threads, no GPU, torch 2.13.0" in text
    assert "5 min (3/3)" in text, "0.7 is reached with the last evaluation"
    with pytest.raises(UserError, match="no finished run"):
        write_page(tmp_path / "elsewhere")


def test_times_to_a_score_are_read_between_evaluations():
    curve = Curve([0.0, 60.0, 120.0], [0, 10, 20], [0.2, 0.4, 0.8])
    assert time_to(curve, 0.1) == 0.0
    assert time_to(curve, 0.5) == pytest.approx(75.0)
    assert time_to(curve, 0.9) is None


def test_lines_of_contenders_differ(trained, tmp_path):
    """In colour, or by being dashed: those that change one setting of DGPO."""
    rows = [Row(name, 0.1, [0], {"seen": [Curve([0.0, 1.0], [0, 1], [0.1, 0.2])]}, []) for name in CONTENDERS]
    svg = page._plot(rows, "seen", "images", "images")
    lines = re.findall(r'fill="none" stroke="([^"]*)" stroke-width="2"( stroke-dasharray)?', svg)
    assert len(set(lines)) == len(CONTENDERS)
    assert {name for name in CONTENDERS if f">{name}<" in svg} == set(CONTENDERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"only": ("dpgo",)}, "Did you mean 'dgpo'"), ({"seeds": ()}, "seeds is empty"), ({"minutes": 0.0}, "above 0")],
)
def test_plans_that_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        Plan(**options)
