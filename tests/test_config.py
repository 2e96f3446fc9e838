"""One config in Python, YAML and plain dicts; whatever does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.algorithms import DGPO
from dgpo.algorithms.registry import algorithm_class, known_algorithms
from dgpo.config import (
    PLAIN_LORA,
    Config,
    LoraConfig,
    Optimizer,
    Sampling,
    changed_fields,
    from_dict,
    load_yaml,
    save_yaml,
    to_dict,
)
from dgpo.errors import UserError
from dgpo.recipes import RECIPES, recipe

FULL = Config(
    out="runs/x",
    prompts=("a red circle", "2 stars: yes"),
    rewards={"shapes": 1, "mine.module:score": 0.25},
    reward_normalization="group",
    reward_tags={"shapes": ("counting", "colors")},
    reward_failures={"crispness": "retry(3, 0.5)+drop"},
    eval_rewards=("crispness",),
    eval_prompts={"seen": "shapes:seen:counting,colors"},
    micro_batch_size=4,
    trackers=("tensorboard",),
    algorithm=DGPO(clip_range=None, reference="old", t_sampling="uniform"),
    sampling=Sampling(shift=1.5, eval_guidance_scale=2),
    optimizer=Optimizer(betas=(0.8, 0.99), lr=1e-5, eps=1e-12),
    lora=LoraConfig(target_modules=("to_q", "to_k")),
)


@pytest.mark.parametrize("config", [Config(), FULL, *map(recipe, RECIPES)])
def test_yaml_gives_back_the_same_config(config: Config, tmp_path: Path) -> None:
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@settings(max_examples=30, deadline=None)
@given(lr=st.floats(1e-30, 1e30), beta=st.floats(1e-30, 1e30), text=st.text(st.characters(codec="utf-8")))
def test_numbers_and_texts_survive_yaml_exactly(lr: float, beta: float, text: str) -> None:
    config = Config(license=text, prompts=(text, text), optimizer=Optimizer(lr=lr), algorithm=DGPO(beta=beta))
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_a_config_file_may_name_a_few_fields_and_write_numbers_as_one_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "iterations: 3\nprompts:\n- a cat\n- a dog\nname: 3e\noptimizer:\n  lr: 3e-4\n  eps: 1E-12\n"
        "algorithm:\n  beta: 10\n  kl_coef: .5e-2\nsampling:\n"
    )
    assert load_yaml(path) == Config(
        iterations=3,
        prompts=("a cat", "a dog"),
        name="3e",
        optimizer=Optimizer(lr=3e-4, eps=1e-12),
        algorithm=DGPO(beta=10.0, kl_coef=0.005),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grop_size": 4}, "unknown field 'grop_size'. Did you mean 'group_size'?"),
        ({"lr": 1e-4}, "unknown field 'lr'. Did you mean 'optimizer.lr'?"),
        ({"algorithm": {"bta": 3}}, "unknown field 'algorithm.bta'. Did you mean 'algorithm.beta'?"),
        ({"optimizer": {"group_size": 3}}, "unknown field 'optimizer.group_size'"),
        ({"algorithm": {"name": "dgop"}}, "algorithm.name='dgop' is unknown. Did you mean 'dgpo'?"),
        ({1: 2}, "unknown field '1'"),
        ({"group_size": "8"}, "group_size='8': input should be a valid integer"),
        ({"group_size": 3.7}, "group_size=3.7"),
        ({"group_size": 8.0}, "group_size=8.0"),
        ({"group_size": True}, "group_size=True"),
        (
            {"algorithm": {"num_points": "x"}},
            r"algorithm.num_points='x': input should be a valid .*\(the type is int\)",
        ),
        (
            {"optimizer.lr": 1e-3},
            "'optimizer.lr' is how the command line names it; .* write `optimizer:` and, .* `lr: ",
        ),
        ({"algorithm.beta": None}, "'algorithm.beta' is how the command line names it"),
        ({None: 3}, "a line has no field name, only 3"),
        ({"optimizer": {None: 3}}, "a line below optimizer has no field name"),
        ({"algorithm": {"name": None}}, "algorithm.name is empty; give one of dgpo, "),
        ({"rewards": {"shapes": None}}, r"rewards.shapes is empty.*\(the type of rewards is dict\[str, float\]\)"),
        ({"reward_tags": {"shapes": ["a", None]}}, r"reward_tags.shapes\[1\] is empty"),
        ({"optimizer": {"betas": [0.9, None]}}, r"optimizer.betas\[1\] is empty"),
        ({"micro_batch_size": "4"}, r"micro_batch_size='4': .*int \| None"),
        ({"optimizer": {"lr": True}}, "optimizer.lr=True"),
        ({"optimizer": {"lr": "3e-4"}}, "optimizer.lr='3e-4'"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas=\[0.9\]: .*tuple\[float, float\]"),
        ({"optimizer": 3}, "optimizer=3: it must hold fields"),
        ({"algorithm": {"beta": "x"}}, "algorithm.beta='x'"),
        ({"algorithm": "dgpo"}, "algorithm='dgpo': it must hold fields"),
        ({"finetune": "half"}, "finetune='half': input should be 'lora' or 'full'"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing=1"),
        ({"prompts": 3}, "prompts=3"),
        ({"prompts": ["a", 3]}, "prompts="),
        ({"trackers": "wandb"}, "trackers='wandb'"),
        ({"rewards": ["shapes"]}, "rewards="),
        ({"rewards": {"shapes": "1"}}, "rewards="),
        ({"eval_prompts": {"seen": ["a"]}}, "eval_prompts="),
    ],
)
def test_unknown_and_ill_typed_fields_are_named(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^mine.yaml: {message}"):
        from_dict(values, "mine.yaml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 1}, "group_size=1 cannot work: it must be at least 2, because"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"micro_batch_size": 0}, "micro_batch_size=0"),
        ({"eval_every": -1}, "eval_every=-1 .*0 is never"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"reward_tags": {"shaps": ["counting"]}}, "reward_tags names 'shaps'.* Did you mean 'shapes'"),
        ({"reward_tags": {"shapes": []}}, "reward_tags has no tag for 'shapes'"),
        ({"reward_tags": {"shapes": "counting"}}, "reward_tags="),
        ({"reward_failures": {"clip": "drop"}}, "reward_failures names 'clip'"),
        ({"reward_normalization": "batch"}, "reward_normalization='batch'"),
        ({"reward_normalization": "group", "offline": "data"}, "take reward_normalization='none'"),
        ({"eval_prompts": {"a/b": "x.txt"}}, "'a/b'"),
        ({"stop_on_alarm": True}, "stop_on_alarm compares the scores of eval_rewards"),
        ({"optimizer": Optimizer(lr=0.0)}, "optimizer.lr=0.0"),
        ({"optimizer": Optimizer(lr=float("nan"))}, "optimizer.lr=nan"),
        ({"optimizer": Optimizer(betas=(0.9, 1.0))}, "optimizer.betas"),
        ({"optimizer": Optimizer(ema_decay=1.0)}, "ema_decay=1.0"),
        (
            {"sampling": Sampling(solver="dpm_solver")},
            "sampling.solver='dpm_solver' is unknown. Did you mean 'dpm_solver_pp_2m'",
        ),
        ({"sampling": Sampling(num_inference_steps=0)}, "sampling.num_inference_steps=0"),
        ({"sampling": Sampling(batch_size=0)}, "sampling.batch_size=0"),
        ({"sampling": Sampling(shift=0.0)}, "sampling.shift=0.0"),
        ({"lora": LoraConfig(rank=0)}, "lora.rank=0"),
        ({"lora": LoraConfig(alpha=0)}, "lora.alpha=0 cannot work: it must be above 0"),
        ({"lora": LoraConfig(rank_pattern={"to_q": 0})}, "lora.rank_pattern gives 'to_q' 0: it must be above 0"),
        (
            {"sampling": Sampling(num_inference_steps=6), "algorithm": DGPO(trunc_steps=6)},
            "trunc_steps=6 needs at least 7 noise levels, and sampling.num_inference_steps=6",
        ),
        ({"group_size": "8"}, "group_size='8'"),
        ({"optimizer": {"lr": 1.0}}, "optimizer="),
        ({"algorithm": DGPO(beta=True)}, "algorithm.beta=True"),
    ],
)
def test_what_cannot_work_is_refused_in_python_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**{"rewards": {"shapes": 1.0}, **fields})


def test_truncation_may_use_every_level_but_the_last_and_matters_on_the_grid_alone() -> None:
    Config(sampling=Sampling(num_inference_steps=7), algorithm=DGPO(trunc_steps=6))
    Config(sampling=Sampling(num_inference_steps=2), algorithm=DGPO(t_sampling="uniform"))


def test_lists_serve_as_tuples_in_python() -> None:
    prompts: Any = ["a cat", "a dog"]
    assert changed_fields(Config(prompts=prompts), Config(prompts=("a cat", "a dog"))) == []


def test_changed_fields_are_named_with_their_group() -> None:
    assert changed_fields(FULL, FULL) == []
    after = replace(
        FULL, seed=3, rewards={"shapes": 2}, optimizer=replace(FULL.optimizer, lr=1.0), algorithm=DGPO(clip_range=None)
    )
    changed = changed_fields(FULL, after)
    assert changed == ["seed", "rewards", "algorithm.t_sampling", "algorithm.reference", "optimizer.lr"]


@pytest.mark.parametrize(
    "heading", ["", "sampling", "optimizer", "lora", *(f"algorithm {name}" for name in known_algorithms())]
)
def test_a_field_without_a_value_is_none_or_said_to_be_empty(heading: str, tmp_path: Path) -> None:
    """`lr:` with nothing behind it is YAML's null."""
    group, _, name = heading.partition(" ")
    kind: Any = algorithm_class(name) if name else get_type_hints(Config)[group] if group else Config
    fields = {field: hint for field, hint in get_type_hints(kind).items() if not is_dataclass(hint)}
    fields.pop("algorithm", None)
    for field, hint in fields.items():
        path = tmp_path / "mine.yaml"
        above = f"{group}:\n" + (f"  name: {name}\n" if name else "") if group else ""
        path.write_text(f"{above}{'  ' if group else ''}{field}:\n")
        if type(None) in get_args(hint):
            config = load_yaml(path)
            assert getattr(getattr(config, group) if group else config, field) is None
            continue
        full = f"{group}.{field}" if group else field
        message = re.escape(f"{path}: {full} is empty, and it needs a value (the type is ")
        with pytest.raises(UserError, match=f"^{message}.*leave {re.escape(full)} out$"):
            load_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n- b\n", "is no config"), ("a: [1", "cannot read"), ("", "is no config")]
)
def test_files_that_are_no_config(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_yaml(path)
    with pytest.raises(UserError, match="cannot read the config"):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["reward", "drift"])
def test_names_that_evaluations_use_are_no_rewards(name):
    with pytest.raises(UserError, match=f"cannot be called '{name}'"):
        Config(rewards={"shapes": 1.0, name: 1.0})
    with pytest.raises(UserError, match=f"cannot be called '{name}'"):
        Config(eval_rewards=(name,))


def test_a_lora_config_is_filled_only_where_nothing_is_given():
    told = LoraConfig(rank=4, alpha=2.5, rank_pattern={"a": 1}, alpha_pattern={"b": 3}, target_modules=("c",))
    assert LoraConfig(start="x").filled(told) == replace(told, start="x")
    given = LoraConfig(rank=8, alpha=8, target_modules=("d",))
    assert given.filled(told) == given
    assert LoraConfig(alpha=8).filled(told) == replace(told, alpha=8, alpha_pattern={})
    assert LoraConfig().filled(PLAIN_LORA) == PLAIN_LORA


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "fields",
    [
        lambda v: {"max_minutes": v},
        lambda v: {"text_dropout": v},
        lambda v: {"distilled_guidance": v},
        lambda v: {"rewards": {"shapes": 1.0, "clip": v}},
        lambda v: {"sampling": Sampling(eval_guidance_scale=v)},
        lambda v: {"sampling": Sampling(shift=v)},
        lambda v: {"optimizer": Optimizer(weight_decay=v)},
        lambda v: {"optimizer": Optimizer(max_grad_norm=v)},
        lambda v: {"optimizer": Optimizer(betas=(0.9, v))},
    ],
)
def test_nan_and_infinity_are_refused_in_every_float_field(fields: Any, value: float) -> None:
    with pytest.raises(UserError, match=r"=.*(nan|inf).* cannot work: it must be finite"):
        Config(**fields(value))


def all_floats(kind: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        default = getattr(kind, field.name)
        if dataclasses.is_dataclass(default):
            found += all_floats(default, f"{prefix}{field.name}.")
        elif str(field.type).startswith("float"):
            found.append(f"{prefix}{field.name}")
    return found


@pytest.mark.parametrize("name", all_floats(Config()))
def test_nan_in_a_file_names_its_field(name: str, tmp_path: Path) -> None:
    heading, _, own = name.rpartition(".")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{heading}:\n  {own}: .nan\n" if heading else f"{own}: .nan\n")
    with pytest.raises(UserError, match=rf"{own}=nan"):
        load_yaml(path)


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("name", ["guidance_scale", "eval_guidance_scale"])
def test_guidance_below_one_is_refused_with_what_it_would_do(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"sampling.{name}={value} cannot work.* do not follow their prompt.* take 1"):
        Config(sampling=Sampling(**{name: value}))
    Config(sampling=Sampling(**{name: 1.0}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\niterations: 3\nseed: 2\n", "'seed' stands in line 1 and again in line 3"),
        ("optimizer:\n  lr: 1e-3\n  eps: 1e-8\n  lr: 1e-4\n", "'lr' stands in line 2 and again in line 4"),
        ("rewards: {shapes: 1,\n  shapes: 2}\n", "'shapes' stands in line 1 and again in line 2"),
        (
            "optimizer:\n  lr: 1e-3\nseed: 1\noptimizer:\n  eps: 1e-8\n",
            "'optimizer' stands in line 1 and again in line 4",
        ),
        ("rewards: {shapes: 1, shapes: 2}\n", "'shapes' stands in line 1 and again in line 1"),
    ],
)
def test_of_two_equal_keys_none_is_dropped_in_silence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"mine.yaml: {message}"):
        load_yaml(path)


def test_the_same_key_under_other_headings_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nalgorithm:\n  name: awm\noptimizer:\n  name: adamw\nsampling: &s {shift: 2.0}\n")
    assert load_yaml(path).sampling.shift == 2.0


def test_a_text_that_the_loader_would_take_for_a_number_comes_back_as_a_text(tmp_path):
    config = Config(name="1e3", prompts=("2e5", "-.5e1", "1.5", "yes", "null"))
    save_yaml(config, tmp_path / "x.yaml")
    assert load_yaml(tmp_path / "x.yaml") == config


@pytest.mark.parametrize(
    ("fields", "called"),
    [
        ({"model": "tiny-sd3", "rewards": {"yellow": 1.0}}, "tiny-sd3-yellow"),
        ({"model": "owner/some-model", "rewards": {"my.rewards:big": 1.0, "ocr": 0.5}}, "some-model-big-ocr"),
        ({"rewards": {"http://host:8000/v1": 1.0}}, "model-host-8000-v1"),
        ({"model": "folder/of/it/", "offline": "runs/groups"}, "it-groups"),
        ({"model": "m", "rewards": dict.fromkeys("abcd", 1.0)}, "m-a-b-c-more"),
        ({"name": "mine", "model": "m"}, "mine"),
    ],
)
def test_a_run_without_a_name_is_called_after_what_it_trains(fields: dict[str, Any], called: str) -> None:
    config = Config(**fields)
    assert config.called == called
    assert from_dict(to_dict(config)) == config
