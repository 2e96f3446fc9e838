"""Images that train may have another size than those that are evaluated (`sampling.resolution`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from people import Answers  # pyright: ignore[reportMissingImports] (tests/helpers)
from runs import REWARDS, assert_same_run, run, small, tensors, write_pictures
from tiny import tiny_sd3  # pyright: ignore[reportMissingImports] (tests/models)
from torch import Tensor

import dgpo
from dgpo import Config, FlowGRPO, UserError, load_model
from dgpo.algorithms.registry import algorithm_class
from dgpo.config import Human
from dgpo.data.groups import GroupDataset
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.teach.groups import BLIND, Groups
from dgpo.training.draw import at_rollout_size, draw
from dgpo.training.dry_run import dry_run
from dgpo.types import Rollout
from dgpo.utils.pictures import image_size

OWN, HALF = 64, 32


class Seen(Callback):
    """Keeps rollouts and evaluated pictures."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        self.evaluated: list[Tensor] = []

    def on_rollout(self, run: Progress, rollout: Rollout) -> None:
        self.rollouts.append(rollout)

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        self.evaluated.append(evaluated.images)


@pytest.fixture(scope="module")
def shifting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose grid follows the size of the image."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = tiny_sd3()
    tokens = {"base_image_seq_len": 4, "max_image_seq_len": 64}
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **tokens)
    with torch.no_grad():
        for parameter in pipeline.transformer.proj_out.parameters():
            parameter.mul_(0.05)
    folder = tmp_path_factory.mktemp("shifting")
    pipeline.save_pretrained(folder)
    return folder


def half(config: Config, resolution: int = HALF) -> Config:
    return replace(config, sampling=replace(config.sampling, resolution=resolution))


def evaluating(config: Config, tmp_path: Path) -> Config:
    (tmp_path / "eval.txt").write_text("a cup\ngreen\n")
    sets = {"seen": str(tmp_path / "eval.txt")}
    return replace(config, eval_every=2, eval_prompts=sets, eval_images_per_prompt=1, num_samples=2)


@pytest.mark.parametrize("changes", [{}, {"algorithm": FlowGRPO()}], ids=["dgpo", "stochastic sampler"])
def test_a_run_trains_as_one_of_that_resolution_and_evaluates_at_its_own(
    shifting: Path, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    seen, small_seen = Seen(), Seen()
    config = small(shifting, tmp_path / "run", **changes)
    run(evaluating(half(config), tmp_path), callbacks=[seen])
    assert "2 of 5 prompts x 3 images = 6 images of 32 pixels a side" in capsys.readouterr().out
    run(replace(config, out=str(tmp_path / "at half"), resolution=HALF), callbacks=[small_seen])
    for rollout, expected in zip(seen.rollouts, small_seen.rollouts, strict=True):
        assert rollout.x0.shape == (6, 4, 4, 4)
        assert rollout.images.shape == (6, 3, HALF, HALF)
        for name in ("x0", "images", "sigmas", "rewards"):
            assert torch.equal(getattr(rollout, name), getattr(expected, name))
    trained, expected = tensors(tmp_path / "run", 3), tensors(tmp_path / "at half", 3)
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[key], expected[key]) for key in trained)
    assert [pictures.shape[1:] for pictures in seen.evaluated] == [(3, OWN, OWN)] * 3
    grid = load_model(shifting, device="cpu").sigmas(3)
    assert not torch.allclose(seen.rollouts[0].sigmas, grid), "the shift is that of the rollout's size"


def test_an_own_shift_holds_for_both_sizes(shifting: Path) -> None:
    model: Any = load_model(shifting, device="cpu", shift=2.0)
    assert model.at_resolution(HALF).shift == model.shift == 2.0
    usual: Any = load_model(shifting, device="cpu")
    assert usual.at_resolution(HALF).shift < usual.shift


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_never_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    whole = evaluating(half(small(tiny_folder, tmp_path / "whole", iterations=4)), tmp_path)
    run(whole)
    parts = replace(whole, out=str(tmp_path / "parts"))
    run(replace(parts, iterations=2))
    with pytest.raises(UserError, match=r"sampling\.resolution"):
        run(half(parts, OWN), resume=True)
    run(parts, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 4)


def test_sampling_with_a_run_draws_at_its_own_resolution(tiny_folder: Path, tmp_path: Path) -> None:
    config = half(small(tiny_folder, tmp_path))
    assert dgpo.sample(tiny_folder, config, prompts=["a cup"], images=1).shape == (1, 1, 3, OWN, OWN)


@pytest.mark.slow
def test_what_is_collected_is_what_a_run_trains_on(tiny_folder: Path, tmp_path: Path) -> None:
    """Both read sampling.resolution; a run of another one says what is wrong."""
    config = half(small(tiny_folder, tmp_path / "run", iterations=2, algorithm=algorithm_class("diffusion_dpo")()))
    dgpo.collect(tiny_folder, config, groups=2, out=tmp_path / "groups", reward_functions=REWARDS)
    model = load_model(tiny_folder, device="cpu")
    assert GroupDataset(tmp_path / "groups").x0(0, [0, 1], model).shape == (2, 4, 4, 4)
    seen = Seen()
    offline = replace(config, offline=str(tmp_path / "groups"), prompts=())
    run(evaluating(offline, tmp_path), callbacks=[seen])
    assert seen.rollouts[0].x0.shape == (6, 4, 4, 4)
    assert seen.evaluated[0].shape[1:] == (3, OWN, OWN)
    other = half(replace(offline, out=str(tmp_path / "other")), OWN)
    with pytest.raises(UserError, match=r"latent_shape \[4, 4, 4\] there and \[4, 8, 8\] here.* sampling\.resolution"):
        run(other)
    pictures = replace(other, offline=str(write_pictures(tmp_path / "pictures")))
    run(replace(pictures, out=str(tmp_path / "of pictures"), iterations=1))
    with pytest.raises(UserError, match=r"64 x 64 pixels, and the model draws 32 x 32; .*sampling\.resolution"):
        run(half(pictures))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_people_judge_what_trains_and_compare_at_the_runs_resolution(tiny_folder: Path, tmp_path: Path) -> None:
    config = half(small(tiny_folder, tmp_path / "run", rewards={"human": 1.0}))
    (tmp_path / "eval.txt").write_text("a hat\na box\n")
    human = Human(ahead=2, reuse=2, blind_every=2, repeat_every=0, share_every=0)
    config = replace(config, human=human, eval_every=2, eval_prompts={"other": str(tmp_path / "eval.txt")})
    run(config, callbacks=[Answers()], reward_functions={})
    groups = Groups(tmp_path / "run")
    sizes = {group.kind: set[Any]() for group in groups.all().values()}
    for number, group in groups.all().items():
        paths = [groups.picture(number, place) for place in range(len(group.images))]
        sizes[group.kind] |= {image_size(path, ("PNG",), "") for path in paths}
    assert sizes.pop(BLIND) == {(OWN, OWN)}
    assert [*sizes.values()] == [{(HALF, HALF)}]
    space = json.loads((tmp_path / "run" / "teach" / "latent_space.json").read_text())
    assert space["latent_shape"] == [4, 4, 4]


def test_a_size_that_cannot_be_is_refused_before_anything_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tiny_folder, tmp_path / "run")
    with pytest.raises(UserError, match=r"sampling\.resolution: resolution=40 does not fit .* multiples of 16 pixels"):
        run(half(config, 40))
    with pytest.raises(UserError, match=r"sampling\.resolution=0 cannot work"):
        half(config, 0)
    alone = SimpleNamespace(latent_shape=(4, 8, 8))
    model: Any = alone
    with pytest.raises(UserError, match=r"SimpleNamespace draws images of one size only.* at_resolution"):
        at_rollout_size(model, half(config).sampling)
    assert at_rollout_size(model, config.sampling) is alone
    assert not (tmp_path / "run").exists()


def test_a_size_that_a_reward_does_not_read_is_refused_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = small(tiny_folder, tmp_path / "run", rewards={"crispness": 1.0}, iterations=1)
    functions: dict[str, Any] = {"reward_functions": {}}
    refused = r"'crispness' reads images of 64 x 64 pixels only; take {}=64, or another reward"
    with pytest.raises(UserError, match=r"^sampling\.resolution=32, .*" + refused.format(r"sampling\.resolution")):
        run(half(config), **functions)
    with pytest.raises(UserError, match="^resolution=32, .*" + refused.format("resolution")):
        run(replace(config, resolution=HALF), **functions)
    with pytest.raises(UserError, match="^resolution=32, .*" + refused.format("resolution")):
        run(evaluating(half(replace(config, resolution=HALF), OWN), tmp_path), **functions)
    assert not (tmp_path / "run").exists()
    own = half(replace(config, resolution=HALF), OWN)  # which evaluates nothing
    assert run(own, **functions).iterations == 1
    given = replace(config, resolution=HALF, out=str(tmp_path / "given"))  # the model has a size of its own
    assert run(given, model=load_model(tiny_folder, device="cpu", lora=config.lora), **functions).iterations == 1


def test_a_model_that_would_draw_with_other_weights_is_refused() -> None:
    class Copies:
        def __init__(self) -> None:
            self.weights = object()

        def at_resolution(self, resolution: int) -> Copies:
            return Copies()

    model: Any = Copies()
    with pytest.raises(UserError, match=r"Copies\.at_resolution returns a model with other weights"):
        at_rollout_size(model, half(Config()).sampling)


@pytest.mark.slow
def test_a_dry_run_goes_through_both_sizes(tiny_folder: Path, tmp_path: Path) -> None:
    config = replace(evaluating(half(small(tiny_folder, tmp_path / "run")), tmp_path), rewards={"runs:colour": 1.0})
    assert any(line.startswith("evaluated: seen/") for line in dry_run(config))


@pytest.mark.slow
def test_plain_drawing_in_bf16_is_that_of_a_model_of_the_size(tiny_folder: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "bf16"}
    sampling = half(Config()).sampling
    model, loaded = load_model(tiny_folder, **settings), load_model(tiny_folder, resolution=HALF, **settings)

    def drawn(model: Any) -> Tensor:
        (batch,) = draw(model, model.encode(["a cup"]), [torch.Generator().manual_seed(0)], sampling, "ema")
        return batch.x0

    assert torch.equal(drawn(at_rollout_size(model, sampling)), drawn(loaded))
