"""The benchmark runs what is missing and nothing twice, and its page says what the results hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import make_run
from trained import BEST, Trained

from dgpo.bench import run
from dgpo.bench.curves import Curve, Row, curve_of, reached
from dgpo.bench.out_of_domain import out_of_domain
from dgpo.bench.page import _plot, write_page
from dgpo.bench.plan import CONTENDERS, LEARNING_RATES, Plan, config_of
from dgpo.bench.run import Job, bench, best_lr, result_path, results, run_config
from dgpo.commands.main import main
from dgpo.config import Config, changed_fields, from_dict, to_dict
from dgpo.errors import NonFiniteError, UserError
from dgpo.report.page import render
from dgpo.training.draw import for_evaluation
from dgpo.training.geometry import network_forwards
from dgpo.training.loop import Result


def searched(trained: Trained) -> list[float]:
    return [c.optimizer.lr for c in trained.started if "train" in c.eval_prompts]


def finals(trained: Trained) -> list[Config]:
    return [c for c in trained.started if "seen" in c.eval_prompts]


@pytest.mark.parametrize("setting", ["plain", "guided"])
def test_every_contender_shares_what_must_be_equal(setting: Any, tmp_path: Path) -> None:
    base = config_of("dgpo", setting)
    assert base.sampling.guidance_scale == {"plain": 1.0, "guided": 3.0}[setting]
    for name in CONTENDERS:
        config = run_config(Job(name, setting, 1e-3, 230_400, 7), tmp_path)
        assert from_dict(to_dict(config)) == config
        assert (config.seed, config.optimizer.lr) == (7, 1e-3)
        if setting == "guided":
            assert name == "crd" or config.algorithm.ref_guidance(3.0) in (1.0, 3.0), "its guidance is in the rollouts"
        for field in (
            *("model", "lora", "prompts", "rewards", "eval_prompts", "eval_rewards", "eval_images_per_prompt"),
            "eval_images",
        ):
            assert getattr(config, field) == getattr(base, field), (name, field)
        own, shared = for_evaluation(config.sampling), for_evaluation(base.sampling)
        assert replace(own, eval_num_inference_steps=shared.eval_num_inference_steps) == shared, name
        assert config.iterations * network_forwards(config) == pytest.approx(230_400, rel=0.03)
        assert config.optimizer.decay_steps == config.iterations * config.updates_per_rollout
        apart = abs(config.eval_every * network_forwards(config) - {"plain": 19_200, "guided": 38_400}[setting])
        assert apart <= network_forwards(config) / 2, "the nearest whole number of iterations"


def test_the_search_sees_the_train_list_only_and_its_best_rate_runs_every_seed(
    trained: Trained, tmp_path: Path
) -> None:
    assert bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))
    search = trained.started[: len(LEARNING_RATES)]
    assert searched(trained) == [*LEARNING_RATES]
    assert {(c.seed, *c.eval_prompts.items()) for c in search} == {(100, ("train", search[0].prompts))}
    assert [(c.optimizer.lr, c.seed) for c in finals(trained)] == [(BEST, 0), (BEST / 2, 0), (BEST, 1)]


@pytest.mark.parametrize(("searched_best", "long_best", "tried"), [(4e-3, 4e-3, 2), (4e-3, 2e-3, 3), (4e-3, 1e-3, 4)])
def test_a_rate_is_halved_at_full_length_while_that_helps(
    searched_best: float, long_best: float, tried: int, trained: Trained, tmp_path: Path, monkeypatch: Any
) -> None:
    def lasts(config: Config, resume: bool = False) -> Result:
        trained.best = searched_best if "train" in config.eval_prompts else long_best
        return trained(config, resume)

    monkeypatch.setattr(run, "train", lasts)
    options = Plan(only=("ram",), seeds=(5, 6), out=str(tmp_path))
    assert bench(options)
    rates = [4e-3 / 2**k for k in range(tried)]
    assert [(c.optimizer.lr, c.seed) for c in finals(trained)] == [*((lr, 5) for lr in rates), (long_best, 6)]
    kept = {path.name for path in results(tmp_path).glob("halved/*.json")}
    assert kept == {f"ram-plain-seed5-lr{lr:g}.json" for lr in rates}
    for suffix in ("json", "png"):
        first, best = results(tmp_path) / f"ram-plain-seed5.{suffix}", f"ram-plain-seed5-lr{long_best:g}.{suffix}"
        assert first.read_bytes() == (results(tmp_path) / "halved" / best).read_bytes(), "it is the first seed's run"
    count = len(trained.started)
    assert bench(options)
    assert len(trained.started) == count
    page = write_page(tmp_path).read_text()
    assert "Half of that rate in a full-length run" in page
    assert page.count("<td>yes</td>") == 1


def test_the_evaluation_lists_do_not_decide_the_rate() -> None:
    rows = [{run.ROLLOUTS: score, "eval/seen/shapes_strict": 1.0} for score in (0.9, 0.9, 0.9, 0.9, 0.5)]
    assert run.late_score({"metrics": [{"iteration": 0}, *rows, {"eval/seen/shapes_strict": 1.0}]}) == 0.5


def test_a_long_run_that_diverges_at_its_rate_halves_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explodes(config: Config, resume: bool = False) -> Result:
        if config.optimizer.lr > 0.6 * BEST and "seen" in config.eval_prompts:
            raise NonFiniteError("train/loss not finite")
        return trained(config, resume)

    monkeypatch.setattr(run, "train", explodes)
    assert bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))
    assert {(c.optimizer.lr, c.seed) for c in finals(trained)} == {(1e-3, 0), (5e-4, 0), (1e-3, 1)}
    assert "diverged" in write_page(tmp_path).read_text()


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.6e-2, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]),
        (2.5e-4, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2.5e-4, 1.25e-4]),
    ],
)
def test_the_grid_grows_until_its_best_is_inside(
    best: float, tried: list[float], trained: Trained, tmp_path: Path
) -> None:
    trained.best = best
    bench(Plan(only=("crd",), seeds=(0,), out=str(tmp_path)))
    assert searched(trained) == pytest.approx(tried)
    assert finals(trained)[0].optimizer.lr == pytest.approx(best)


def test_a_single_rate_is_taken_without_a_search(trained: Trained, tmp_path: Path) -> None:
    assert bench(Plan(only=("awm",), seeds=(0, 1), rates=(3e-3,), out=str(tmp_path)))
    assert [(c.optimizer.lr, c.seed) for c in trained.started] == [(3e-3, 0), (3e-3, 1)]


def test_a_rate_that_loses_diversity_is_taken_only_where_all_do(trained: Trained, tmp_path: Path) -> None:
    trained.diversity = lambda config: 0.8 if config.optimizer.lr >= BEST else 0.95
    bench(Plan(only=("ram",), seeds=(0,), halve=False, out=str(tmp_path)))
    assert finals(trained)[0].optimizer.lr == 1e-3
    trained.diversity = lambda config: 0.8
    bench(Plan(only=("dgpo",), seeds=(0,), halve=False, out=str(tmp_path)))
    assert finals(trained)[1].optimizer.lr == BEST
    assert best_lr(tmp_path, "ram", "plain", [1e-3, 2e-3]) == 1e-3


def test_a_finished_run_is_not_run_again(trained: Trained, tmp_path: Path) -> None:
    options = Plan(only=("awm",), seeds=(0,), out=str(tmp_path))
    bench(options)
    count = len(trained.started)
    assert bench(options)
    assert len(trained.started) == count
    for name in ("awm-plain-seed0", "halved/awm-plain-seed0-lr0.001"):
        (results(tmp_path) / f"{name}.json").unlink()
    assert bench(options)
    assert [(c.optimizer.lr, c.seed) for c in trained.started[count:]] == [(BEST / 2, 0)]
    assert (results(tmp_path) / "awm-plain-seed0.json").exists(), "of the best of its rates"


@pytest.mark.parametrize("changes", [{"forwards": 90_000}, {"search_forwards": 90_000}])
def test_a_result_of_other_settings_is_not_taken_for_this_one(
    changes: dict[str, int], trained: Trained, tmp_path: Path
) -> None:
    bench(Plan(only=("awm",), seeds=(0,), out=str(tmp_path)))
    count = len(trained.started)
    with pytest.raises(UserError, match=r"was made with another iterations.*Move it away"):
        bench(Plan(only=("awm",), seeds=(0,), out=str(tmp_path), **changes))
    assert len(trained.started) == count
    trained.best, kept = 4e-3, results(tmp_path) / "search"
    for path in kept.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"awm-plain-seed0\.json was made with another optimizer"):
        bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))


def stored(path: Path, **changes: Any) -> None:
    """Give a stored result another config; a value of None takes the field away."""
    result = json.loads(path.read_text())
    asked = {name: value for name, value in {**result["asked"], **changes}.items() if name not in changes or value}
    path.write_text(json.dumps({**result, "asked": asked}))


def test_a_result_is_taken_that_lacks_a_newer_field_or_ran_on_another_device(trained: Trained, tmp_path: Path) -> None:
    options = Plan(only=("awm",), seeds=(0,), out=str(tmp_path))
    bench(options)
    count, path = len(trained.started), results(tmp_path) / "search" / "awm-plain-lr0.001.json"
    for changes in ({"stop_on_alarm": None, "eval_images": None}, {"device": "cuda"}):
        stored(path, **changes)
        assert bench(options)
        assert len(trained.started) == count
    for changes in ({"group_size": None}, {"removed_long_ago": 3}):
        stored(path, **changes)
        with pytest.raises(UserError, match=f"was made with another {next(iter(changes))}\\b"):
            bench(options)
        stored(path, group_size=12, removed_long_ago=None)


def test_a_gpu_gets_larger_batches_and_its_results_are_those_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(Job("awm", "plain", 1e-3, 57_600, 0), tmp_path)
    assert run.placed(config, "cpu") == replace(config, device="cpu")
    for device in ("cuda", "auto"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        fast = run.placed(config, device)
        assert changed_fields(config, replace(fast, device="auto")) == ["noise_scale_every", "sampling.batch_size"]
        assert run.comparable(to_dict(fast)) == run.comparable(to_dict(config))


def test_the_project_s_own_results_are_taken() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    found = [*results(folder).rglob("*.json")]
    assert found
    for path in found:
        result = run.load(path)
        job = Job(*(result[name] for name in Job._fields[:5]), halving=path.parent.name == "halved")
        assert result_path(job, folder) == path
        assert run.has_result(job, folder), path


def test_equal_scores_end_the_search_at_the_middle(trained: Trained, tmp_path: Path) -> None:
    trained.best = 1e9  # all gains are nothing
    trained.diversity = lambda config: 1.0
    for lr in LEARNING_RATES:
        path = result_path(Job("awm", "plain", lr, 57_600), tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = {"eval/train/shapes_strict": 0.4, "eval/train/diversity": 1.0}
        path.write_text(json.dumps({"evaluations": [scores, scores]}))
    assert best_lr(tmp_path, "awm", "plain", [*LEARNING_RATES]) == 2e-3


def test_a_search_that_never_turns_ends(trained: Trained, tmp_path: Path) -> None:
    trained.best = 1e9
    bench(Plan(only=("awm",), seeds=(0,), out=str(tmp_path)))
    assert len(searched(trained)) == len(LEARNING_RATES) + run.GROWTH


def test_a_rate_that_diverges_is_not_taken_and_stops_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explodes(config: Config, resume: bool = False) -> Result:
        if config.optimizer.lr >= 2e-3 and config.algorithm.__class__.__name__ == "RAM":
            raise NonFiniteError("train/loss not finite")
        return trained(config, resume)

    monkeypatch.setattr(run, "train", explodes)
    assert bench(Plan(only=("ram", "awm"), seeds=(0,), halve=False, out=str(tmp_path)))
    assert [c.optimizer.lr for c in finals(trained)] == [1e-3, BEST]
    assert "0.004: diverged" in write_page(tmp_path).read_text()
    assert len([*(results(tmp_path) / "search").glob("ram-*")]) == len(LEARNING_RATES)


def test_a_run_that_a_person_stopped_leaves_no_result(trained: Trained, tmp_path: Path) -> None:
    trained.interrupted = True
    assert not bench(Plan(only=("awm",), seeds=(0,), out=str(tmp_path)))
    assert len(trained.started) == 1
    assert not [*results(tmp_path).rglob("*.json")]


def test_a_result_lists_its_evaluations_with_their_cost(trained: Trained, tmp_path: Path) -> None:
    bench(Plan(only=("flow_grpo",), seeds=(3,), setting="guided", forwards=40_000, out=str(tmp_path)))
    result = json.loads((results(tmp_path) / "flow_grpo-guided-seed3.json").read_text())
    cost = network_forwards(config_of("flow_grpo", "guided"))
    first, _, last = result["evaluations"]
    assert (first["iteration"], first["forwards"], first["seconds"]) == (0, 0, 0)
    assert last["forwards"] == last["iteration"] * cost == pytest.approx(40_000, rel=0.1)
    assert last["eval/unseen/shapes_strict"] == pytest.approx(0.7)
    assert result["config"]["algorithm"]["kl"] == "authors"
    assert result["config"]["out"] is None
    assert "secret" not in json.dumps(result)


def test_the_command_takes_lists_joined_by_commas(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    words = ["--only", "dgpo,awm", "--seeds", "0,2", "--forwards", "9000", "--halve", "False", "--out", str(tmp_path)]
    assert main(["bench", *words]) == 0
    assert [(type(c.algorithm).__name__, c.seed) for c in finals(trained)] == [
        ("DGPO", 0), ("DGPO", 2), ("AWM", 0), ("AWM", 2)
    ]  # fmt: skip
    assert f"Page: {tmp_path}/bench.html" in capsys.readouterr().out


def test_the_page_says_what_it_takes_to_reach_a_score(trained: Trained, tmp_path: Path) -> None:
    trained.diversity = lambda config: 0.8 if type(config.algorithm).__name__ == "FlowGRPO" else 1.0
    bench(Plan(only=("dgpo", "flow_grpo"), seeds=(0, 1, 2), forwards=100_000, halve=False, out=str(tmp_path)))
    bench(Plan(only=("dgpo",), seeds=(0,), setting="guided", halve=False, out=str(tmp_path)))
    text = write_page(tmp_path).read_text()
    assert "0.400 → 0.700 ± 0.000" in text
    assert text.count("data:image/png;base64,") == 3
    assert text.count("<svg") == 4
    assert "secret" not in text
    assert "dgpo reaches 0.70 with the fewest network forwards" in text
    assert "3 of 3 ⚠" in text, "flow_grpo's pictures are alike by then"
    assert "not reached; best 0.70" in text
    assert "0.0005: 0.475" in text, "the search is told"
    assert "<h3>At equal forwards</h3>" in text
    configs = [run_config(Job(name, "plain", BEST, 100_000, 0), tmp_path) for name in ("dgpo", "flow_grpo")]
    dgpo, other = (config.iterations * network_forwards(config) for config in configs)
    assert f"{min(dgpo, other):,}: shapes_strict, diversity" in text, "where the shortest run ends"
    assert f"{0.4 + 0.3 * min(1, other / dgpo):.3f} ± 0.000, 1.000" in text, "dgpo there"
    assert "Out of domain at equal in-domain score" in text
    assert "a processor, 2 CPU cores, 2 threads, torch 2.13.0" in text
    style = re.compile("<style>.*</style>", re.DOTALL)
    assert style.findall(text) == style.findall(render(make_run(tmp_path / "run", 4, 2)))
    with pytest.raises(UserError, match="no finished run"):
        write_page(tmp_path / "elsewhere")


def evaluated(share: float, seen: float, **scores: float) -> dict[str, float]:
    """An evaluation after a share of training. scores: of other sets than `seen`, with _ for /"""
    row = {"iteration": 10 * share, "forwards": 1000 * share, "seconds": 60 * share, "eval/seen/shapes_strict": seen}
    watched = {f"eval/{split}/{name}": 1.0 for split in ("seen", "unseen") for name in ("diversity", "drift")}
    return row | watched | {f"eval/{name}/shapes_strict": score for name, score in scores.items()}


def contender(name: str, *seeds: list[dict[str, float]]) -> Row:
    return Row(name, "plain", [], [{"evaluations": evaluations} for evaluations in seeds])


def test_contenders_are_compared_out_of_domain_at_one_score_in_domain() -> None:
    start = evaluated(0, 0.3, unseen=0.2, other_seen=0.4, other_unseen=0.2)
    fast = evaluated(1, 0.7, unseen=0.4, other_seen=0.2, other_unseen=0.2)
    late = evaluated(1, 0.5, unseen=0.5, other_seen=0.6, other_unseen=0.2)
    table = out_of_domain([
        contender("dgpo", [start, fast], [start, late]),
        contender("awm", [start, evaluated(1, 0.53, unseen=0.2)]),
        contender("ram", [start, evaluated(1, 0.44)]),
    ])  # fmt: skip
    assert table is not None
    assert table.score == 0.5, "what both seeds of dgpo and awm's one reach, in steps of .05"
    assert table.head[2:5] == ["seen combinations", "unseen combinations", "unseen kinds"]
    base, dgpo, awm, ram = table.rows
    assert base[:5] == ("base model", "", "0.300", "0.200", "0.300")
    # halfway to .4 and .2 in the first seed; at the end, .5 and .4, in the other
    assert dgpo[:5] == ("dgpo", "2 of 2", "0.500", "0.400 ± 0.141", "0.325 ± 0.106")
    assert awm[:5] == ("awm", "1 of 1", "0.500", "0.200", "–"), "an older result has no lists of other kinds"
    assert ram[:4] == ("ram", "0 of 1", "not reached; best 0.440", "")
    assert dgpo[table.head.index("diversity")] == "1.000 ± 0.000"
    assert dgpo[table.head.index("crispness")] == "–"
    assert out_of_domain([contender("dgpo", [start, start])]) is None


def test_costs_of_a_score_are_read_between_evaluations() -> None:
    scores = {"shapes_strict": [0.2, 0.4, 0.8], "diversity": [1.0, 0.95, 0.75], "drift": [0.1, 0.1, 0.2]}
    curve = Curve([0, 1, 3], [0, 1000, 3000], [0.0, 60.0, 120.0], scores)
    hit = reached(curve, 0.5)
    assert hit is not None
    assert (hit.iterations, hit.forwards, hit.seconds) == pytest.approx((1.5, 1500, 75))
    assert hit.scores == pytest.approx({"shapes_strict": 0.5, "diversity": 0.9, "drift": 0.125})
    assert not hit.uniform, "a tenth and no more"
    late, first = reached(curve, 0.6), reached(curve, 0.1)
    assert late is not None
    assert late.uniform
    assert first is not None
    assert first.forwards == 0
    assert reached(curve, 0.9) is None


def test_a_curve_is_the_mean_of_the_sets() -> None:
    row = {
        "iteration": 2,
        "forwards": 10,
        "seconds": 1.0,
        "eval/seen/shapes_strict": 0.4,
        "eval/unseen/shapes_strict": 0.6,
    }
    assert curve_of([row | {"eval/seen/drift": 0.1}]) == Curve([2], [10], [1.0], {"shapes_strict": [0.5]})


def test_lines_of_contenders_differ() -> None:
    rows = [
        Row(name, "plain", [Curve([0, 1], [0, 1], [0.0, 1.0], {"shapes_strict": [0.1, 0.2]})], [])
        for name in CONTENDERS
    ]
    svg = _plot(rows, "forwards", "forwards")
    assert len(set(re.findall(r'fill="none" stroke="([^"]*)" stroke-width="2"', svg))) == len(CONTENDERS)
    assert {name for name in CONTENDERS if f">{name}<" in svg} == set(CONTENDERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ("dpgo",)}, "Did you mean 'dgpo'"),
        ({"seeds": ()}, "seeds is empty"),
        ({"forwards": 0}, "at least 1"),
        ({"jobs": 0}, "runs nothing"),
        ({"rates": ()}, "no grid"),
        ({"rates": (1e-3, 1e-3)}, "no grid"),
    ],
)
def test_plans_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Plan(**options)
