"""An algorithm of one's own: in Python, by name, and in YAML; what misses of the protocol is told at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_run, run, small

import dgpo
from dgpo import DGPO, Sampling, UserError
from dgpo.algorithms import registry
from dgpo.algorithms.base import Algorithm
from dgpo.algorithms.contract import problems
from dgpo.algorithms.registry import algorithm_class, register_algorithm
from dgpo.commands.main import main
from dgpo.config import Config, changed_fields, from_dict, load_yaml, save_yaml, to_dict

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "algorithms.md"
(CODE,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the code of the docs as my_algorithm.py, as a user's does."""
    (tmp_path / "my_algorithm.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "my_algorithm", raising=False)
    monkeypatch.setattr(registry, "_met", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(**fields: Any) -> Any:
    """The class of the docs."""
    return algorithm_class("my_algorithm:RewardWeighted")(**fields)


@pytest.mark.slow
def test_the_algorithm_of_the_docs_trains_as_a_script_and_is_resumed_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(CODE.splitlines()) <= 36
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_met", {})
    environment = {"PYTHONPATH": str(Path(dgpo.__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    code = CODE.replace("iterations=2,", "iterations=2, report=False, num_samples=0, checkpoint_every=1,")

    def script(text: str) -> None:
        Path("mine.py").write_text(text)
        subprocess.run([sys.executable, "mine.py"], env=environment, check=True, capture_output=True)

    script(code)
    stored = yaml.safe_load(Path("runs/weighted/config.yaml").read_text())["algorithm"]
    assert (stored["name"], stored["temperature"]) == ("__main__:RewardWeighted", 0.5)
    assert main(["train", "--resume", "runs/weighted", "--iterations", "3"]) == 2
    error = capsys.readouterr().err
    assert "is a class of a script, a notebook or a function" in error
    assert len(error.splitlines()) == 1
    assert main(["sample", "runs/weighted", "--prompt", "a red circle", "--images", "1"]) == 0
    script(code.replace("iterations=2", "iterations=3").replace("train(config)", "train(config, resume=True)"))
    assert Path("runs/weighted/checkpoints/iteration-000003").is_dir()


def test_the_command_line_plans_tries_trains_and_resumes_it(
    tiny_folder: Path, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = Sampling(num_inference_steps=7, guidance_scale=1.0)
    settings = {"rewards": {"runs:colour": 1.0}, "report": False, "sampling": sampling, "dtype": "fp32"}
    config = small(tiny_folder, working_folder / "run", iterations=1, **settings)
    save_yaml(config, working_folder / "mine.yaml")
    words = ("--algorithm", "my_algorithm:RewardWeighted", "--algorithm.temperature", "0.5")
    options = ("--algorithm.num-points", "2", "--algorithm.trunc-steps", "2")
    assert main(["plan", "mine.yaml", *words, *options]) == 0
    assert "RewardWeighted on" in capsys.readouterr().out
    assert main(["train", "mine.yaml", *words, *options, "--dry-run"]) == 0
    assert "update(s) by RewardWeighted" in capsys.readouterr().out
    assert main(["train", "mine.yaml", *words, *options]) == 0
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0
    assert load_yaml("run/config.yaml").algorithm == own(temperature=0.5, num_points=2, trunc_steps=2)
    whole = replace(config, out="whole", iterations=2, algorithm=own(temperature=0.5, num_points=2, trunc_steps=2))
    run(whole, reward_functions={})
    assert_same_run(working_folder / "run", working_folder / "whole", 2)
    with pytest.raises(UserError, match=r"other values of algorithm\.temperature"):
        run(replace(whole, algorithm=replace(whole.algorithm, temperature=1.0)), resume=True, reward_functions={})


def test_a_config_file_names_it_with_its_fields(working_folder: Path) -> None:
    Path("mine.yaml").write_text(YAML)
    config = load_yaml("mine.yaml")
    assert config == Config(algorithm=own(temperature=0.5))
    assert from_dict(to_dict(config)) == config
    for text, message in (
        ("temprature: 1", "unknown field 'algorithm.temprature'. Did you mean 'algorithm.temperature'"),
        ("temperature: hot", "algorithm.temperature='hot': input should be a valid number"),
        ("temperature: .nan", "algorithm.temperature=nan cannot work"),
        ("temperature:", "algorithm.temperature is empty"),
    ):
        Path("wrong.yaml").write_text(f"algorithm:\n  name: my_algorithm:RewardWeighted\n  {text}\n")
        with pytest.raises(UserError, match=re.escape(message)):
            load_yaml("wrong.yaml")


class Plain:
    """No dataclass, and derived from nothing: the whole protocol, written out; DGPO does the work."""

    needs = frozenset({"ref", "old"})
    couples_group, skips_zero, old_follows = True, False, "step"
    _inner = DGPO(beta=3.0, num_points=2, trunc_steps=2)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_an_object_that_is_no_dataclass_trains_and_is_saved_by_its_name_alone(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = small(tiny_folder, tmp_path / "run", algorithm=Plain(), iterations=1, dtype="fp32")
    run(config)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["algorithm"] == {"name": f"{__name__}:Plain"}
    assert "algorithm" not in changed_fields(config, load_yaml(tmp_path / "run/config.yaml"))
    run(replace(config, iterations=2), resume=True)
    run(replace(config, out=str(tmp_path / "dgpo"), iterations=2, algorithm=Plain._inner))
    assert_same_run(tmp_path / "run", tmp_path / "dgpo", 2)
    with pytest.raises(UserError, match="is no dataclass, so it has no fields; beta given"):
        from_dict({"algorithm": {"name": f"{__name__}:Plain", "beta": 1.0}})


def test_a_class_of_a_function_is_resumed_in_the_same_process(tiny_folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Local(DGPO):
        extra: float = 1.0

    config = small(tiny_folder, tmp_path / "run", algorithm=Local(extra=2.0, num_points=2, trunc_steps=2), iterations=1)
    run(config)
    assert run(replace(config, iterations=2), resume=True).iterations == 2


class Keeps(Algorithm):
    """The least that derives from the protocol."""

    def points_per_update(self, num_steps: int) -> int:
        return 1

    def advantages(self, rewards: Any, group_index: Any, num_groups: int) -> Any:
        return rewards

    def points(self, rollout: Any, generator: Any) -> Iterator[Any]:
        yield from ()

    def loss(self, point: Any, velocities: Any, rollout: Any, reduce: Any = None) -> Any:
        return torch.zeros(()), {}


class Empty(Algorithm): ...


class Wrong(Keeps):
    needs = frozenset({"reference"})
    old_follows = "update"  # pyright: ignore

    def loss(self, point: Any, velocities: Any) -> Any: ...  # pyright: ignore


class Couples(Keeps):
    couples_group = True  # pyright: ignore


class Forgets(Keeps):
    def skips_zero(self) -> bool:  # pyright: ignore (no property)
        return False


@pytest.mark.parametrize(
    ("algorithm", "messages"),
    [
        (
            Empty(),
            ["Empty does not keep the protocol: it has no points_per_update, advantages, points, loss"],
        ),
        (Wrong(), ["loss must take (point, velocities, rollout, reduce)", "old_follows is 'update'", "'reference'"]),
        (Couples(), ["it has no statistic"]),
        (Forgets(), ["skips_zero is <bound method", "must be one of True, False"]),
        (object(), ["it has no needs, couples_group, skips_zero, trained_images"]),
        ("dgpo", ["algorithm=str does not keep the protocol"]),
        (Keeps, ["algorithm=Keeps is a class; give an object of it: algorithm=Keeps()"]),
    ],
)
def test_all_that_misses_of_the_protocol_is_one_error(algorithm: Any, messages: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Config(algorithm=algorithm)
    for message in messages:
        assert message in str(error.value)


def test_the_least_that_derives_from_the_protocol_keeps_it() -> None:
    assert not problems(Keeps())


@dataclass(frozen=True)
class Tensors(Keeps):
    start: Any = field(default_factory=lambda: torch.zeros(2))


@dataclass(frozen=True)
class Needs(Keeps):
    scale: float


class Takes(Keeps):
    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta


def test_what_a_config_file_cannot_keep_is_refused_before_it_is_written() -> None:
    with pytest.raises(UserError, match=r"algorithm\.start is tensor\(\[0., 0.\]\), which a config file cannot hold"):
        Config(algorithm=Tensors())
    with pytest.raises(UserError, match="algorithm=Takes is made with beta, and only the fields of a dataclass"):
        Config(algorithm=Takes())
    assert from_dict(to_dict(Config(algorithm=Needs(2.0)))).algorithm == Needs(2.0)
    with pytest.raises(UserError, match=r"algorithm\.scale is missing, and Needs has no default for it"):
        from_dict({"algorithm": {"name": f"{__name__}:Needs"}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dgop", "--algorithm dgop is unknown. Did you mean 'dgpo'.*package.module:Class"),
        ("no_such_package:X", "algorithm 'no_such_package:X': there is no module no_such_package here"),
        ("my_algorithm:Nothing", "module my_algorithm has no 'Nothing'"),
        ("my_algorithm:dsm_loss", "is a function; name a class"),
    ],
)
def test_names_that_are_no_algorithms(
    name: str, message: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", "--algorithm", name]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in working_folder.iterdir() if path.name != "__pycache__"] == ["my_algorithm.py"]


def test_a_registered_name_reads_and_the_path_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register_algorithm("mine", Needs)
    config = from_dict({"algorithm": {"name": "mine", "scale": 3.0}})
    assert config.algorithm == Needs(3.0)
    assert to_dict(config)["algorithm"] == {"name": f"{__name__}:Needs", "scale": 3.0}
    for name in ("dgpo", "a b", ""):
        with pytest.raises(UserError, match=f"cannot be registered as '{name}'"):
            register_algorithm(name, Needs)
    with pytest.raises(UserError, match="takes a class"):
        register_algorithm("other", Needs(1.0))  # pyright: ignore
