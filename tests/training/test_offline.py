"""Learning from a folder of scored groups: the format, its errors, and that a dataset trains as its rollout would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from runs import PROMPTS, REWARDS, assert_same_run, picture, rows, run, small, write_pictures
from safetensors.torch import load_file, save_file
from updates import source_of

from dgpo import UserError, distributed, load_model, load_prompts
from dgpo.algorithms.dgpo import DGPO
from dgpo.algorithms.registry import algorithm_class
from dgpo.commands.main import COMMANDS, main
from dgpo.config import Config, load_yaml
from dgpo.core import seeds
from dgpo.data.groups import Group, GroupDataset, write_groups
from dgpo.data.sampler import PromptSampler
from dgpo.models.text_cache import CondCache
from dgpo.rewards.combine import RewardSet
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.apply import scored_groups
from dgpo.training.geometry import network_forwards
from dgpo.training.setup import trained_rewards
from dgpo.training.sources import Replayed
from dgpo.types import Rollout
from dgpo.worlds.shapes.captions import build_captions, draw_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests

DOCS = (Path(__file__).parents[2] / "docs" / "offline.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    torch.set_num_threads(1)
    return load_model(tiny_folder, device="cpu", lora=small(tiny_folder, tiny_folder).lora)


def some_groups(model: Any, sizes: tuple[int, ...] = (3, 2)) -> list[Group]:
    """Random latents; a reward between -1 and 1 for each image, and twice that as the score `twice`."""
    groups = []
    for number, size in enumerate(sizes):
        x0 = model.init_noise([seeds.generator(0, "offline", number, i) for i in range(size)])
        rewards = torch.linspace(-1, 1, size)
        groups.append(Group(PROMPTS[number], {"tag": f"kind {number}"}, x0, rewards, {"twice": 2 * rewards}))
    return groups


@pytest.fixture
def latents(model: Any, tmp_path: Path) -> Path:
    """A dataset of latents: groups of three and of two images."""
    return write_groups(tmp_path / "latents", some_groups(model), model.latent_space)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two groups of PNG files, of three and two images, as people make them."""
    return write_pictures(tmp_path / "pictures")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]


def write_lines(folder: Path, *values: dict[str, Any]) -> None:
    (folder / "groups.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))


# --- the format


@pytest.mark.slow
def test_what_is_written_is_read_back_exactly(model: Any, latents: Path) -> None:
    dataset, groups = GroupDataset(latents), some_groups(model)
    dataset.require_fits(model)
    assert dataset.sizes == [3, 2]
    assert dataset.prompts.prompts == [group.prompt for group in groups]
    assert dataset.prompts.metadata == [group.metadata for group in groups]
    for number, group in enumerate(groups):
        assert torch.equal(dataset.x0(number, range(len(group.x0)), model), group.x0)
        assert torch.equal(dataset.rewards(number), group.rewards)
        assert torch.equal(dataset.scores(number)["twice"], group.scores["twice"])
    assert torch.equal(dataset.x0(0, [2, 0], model), groups[0].x0[[2, 0]])
    assert [path.suffix for path in sorted(latents.iterdir())] == [".json", ".jsonl", ".safetensors"]


def test_large_datasets_have_several_shards(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo.data.groups.SHARD_BYTES", 1000)
    groups = some_groups(model, (2, 2, 2))
    dataset = GroupDataset(write_groups(tmp_path / "many", groups, model.latent_space))
    assert len(list((tmp_path / "many").glob("latents-*.safetensors"))) == 3
    assert all(torch.equal(dataset.x0(n, [0, 1], model), group.x0) for n, group in enumerate(groups))


def test_half_precision_latents_are_read_as_fp32(model: Any, tmp_path: Path) -> None:
    groups = [group._replace(x0=group.x0.half()) for group in some_groups(model)]
    x0 = GroupDataset(write_groups(tmp_path / "half", groups, model.latent_space)).x0(0, [1], model)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, groups[0].x0[1:2].float())


def test_a_failed_write_leaves_nothing_and_an_existing_folder_is_kept(model: Any, latents: Path) -> None:
    def failing():
        yield from some_groups(model)
        raise KeyboardInterrupt

    place = latents.with_name("new")
    with pytest.raises(KeyboardInterrupt):
        write_groups(place, failing(), model.latent_space)
    unwritable = some_groups(model)[0]._replace(metadata={"a": object()})
    with pytest.raises(UserError, match="cannot be written as JSON"):
        write_groups(place, [unwritable], model.latent_space)
    assert [path.name for path in latents.parent.iterdir()] == ["latents"]
    with pytest.raises(UserError, match="exists and is not replaced"):
        write_groups(latents, [], model.latent_space)
    place.with_name("new.part").mkdir()
    with pytest.raises(UserError, match=r"left by a process that was killed"):
        write_groups(place, [], model.latent_space)


def test_ranks_become_rewards_with_the_best_the_largest(pictures: Path) -> None:
    dataset = GroupDataset(pictures)
    assert dataset.rewards(0).tolist() == [-1, -3, -1]
    assert dataset.rewards(1).tolist() == [0, 1]
    assert dataset.scores(0) == {}


def test_pictures_are_encoded_one_by_one(model: Any, pictures: Path) -> None:
    dataset = GroupDataset(pictures)
    dataset.require_fits(model)
    image = picture(4).mul(255).round().div(255)
    x0 = dataset.x0(1, [1, 0], model)
    assert x0.shape == (2, *model.latent_shape)
    assert torch.equal(x0[:1], model.encode_images(image[None]))


def test_the_autoencoder_of_the_stock_pipeline_is_inverted(model: Any) -> None:
    vae, images = model.pipeline.vae, torch.stack([picture(0), picture(1)])
    with torch.no_grad():
        expected = vae.encode(images * 2 - 1).latent_dist.mode()
        stock = vae.decode(expected).sample.div(2).add(0.5).clamp(0, 1)
    x0 = model.encode_images(images)
    torch.testing.assert_close(x0, (expected - vae.config.shift_factor) * vae.config.scaling_factor)
    torch.testing.assert_close(model.decode(x0), stock, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_renders_survive_a_round_trip_through_the_embedded_model() -> None:
    embedded = load_model("tiny-sd3", device="cpu", sets=())
    table, rng = build_captions(), seeds.generator(1, "offline")
    images = render(draw(requests(table.prompts).rows(draw_prompts(table, 8, rng)), rng))
    x0 = embedded.encode_images(images)
    assert (embedded.decode(x0) - images).abs().mean() < 0.03
    assert 0.5 < x0.std() < 2  # the units of the noise


# --- training


def rollout_of(model: Any, config: Config) -> Rollout:
    """What the first iteration of an online run samples."""
    sampler, prompts = PromptSampler(len(PROMPTS), config.seed), load_prompts(PROMPTS)
    return source_of(model, config, RewardSet({"colour": 1.0}, REWARDS), prompts, sampler).next(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dgpo", {}),
        ("diffusion_dpo", {}),
        ("awm", {}),
        ("ram", {"sampler_weights": "policy"}),
        ("crd", {"trunc_steps": 2, "num_points": 2}),
    ],
)
def test_offline_on_a_rollout_is_the_online_update(
    name: str, settings: dict[str, Any], model: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    online = small(tiny_folder, tmp_path / "online", iterations=1, noise_scale_every=1, text_dropout=0.4)
    if name != "dgpo":
        online = replace(online, algorithm=algorithm_class(name)(**settings))
    drawn = rollout_of(model, online)
    order = PromptSampler(online.num_groups, online.seed).next(online.num_groups)
    groups: list[Any] = [None] * online.num_groups
    for number, place in enumerate(order):  # so that the dataset hands them out as they were drawn
        own = drawn.rows(drawn.group_index == number)
        groups[place] = Group(own.prompts[0], own.metadata[0], own.x0, own.rewards, own.scores)
    folder = write_groups(tmp_path / "data", groups, model.latent_space)
    run(online)
    run(replace(online, out=str(tmp_path / "offline"), offline=str(folder)), reward_functions={"colour": never})
    assert_same_run(tmp_path / "offline", tmp_path / "online", 1, but=("train/forwards",))
    assert rows(tmp_path / "offline")[0]["train/grad_norm"] > 0


def never(images: Any, prompts: Any, metadata: Any) -> Any:
    raise AssertionError("a reward was called, and there is nothing to score")


@pytest.mark.slow
def test_a_resumed_run_equals_the_run_never_stopped(model: Any, latents: Path, tiny_folder: Path) -> None:
    options = {"offline": str(latents), "num_groups": 1, "noise_scale_every": 1}
    whole = small(tiny_folder, latents.with_name("whole"), iterations=4, **options)
    parted = small(tiny_folder, latents.with_name("parted"), iterations=1, **options)
    run(whole)
    run(parted)
    run(small(tiny_folder, latents.with_name("parted"), iterations=4, **options), resume=True)
    assert_same_run(latents.with_name("parted"), latents.with_name("whole"), 4)
    stored = load_yaml(latents.with_name("parted") / "config.yaml")
    assert (stored.offline, stored.group_size, stored.noise_scale_every) == (str(latents), 3, 0)
    seen = {row["train/score/twice"] for row in rows(latents.with_name("whole"))}
    assert len(rows(latents.with_name("whole"))) == 4
    assert seen == {0.0}


@pytest.mark.slow
def test_groups_of_different_sizes_train_alike_in_any_micro_batch(tiny_folder: Path, pictures: Path) -> None:
    found = []
    for micro in (None, 2, 1):
        out = pictures.with_name(f"micro-{micro}")
        run(small(tiny_folder, out, iterations=1, offline=str(pictures), micro_batch_size=micro))
        found.append({k: v for k, v in rows(out)[0].items() if k.startswith("train/") and k != "train/forwards"})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3, abs=1e-6)
    assert found[0]["train/grad_norm"] > 0
    assert found[0]["train/group_weight"] == pytest.approx(0.5)  # sigmoid(0): the policy is still the reference


def test_groups_that_teach_nothing_leave_the_weights_alone_and_are_told(
    tiny_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tie = {"prompt": "a cup", "images": ["png/0.png", "png/1.png"], "ranks": [1, 1]}
    write_lines(pictures, tie, tie)
    options = {"iterations": 1, "offline": str(pictures), "algorithm": algorithm_class("diffusion_dpo")()}
    run(small(tiny_folder, pictures.with_name("run"), **options))
    (row,) = rows(pictures.with_name("run"))
    assert row["train/frac_trained"] == 0
    assert "train/loss" not in row
    said = " ".join(capsys.readouterr().out.split())
    assert f"{pictures}: all images of 2 of 2 groups earned the same: these prefer no image to another" in said


def test_each_rank_takes_its_share(
    model: Any, tiny_folder: Path, latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo.training.sources.with_advantages", lambda rollout, config: rollout)
    config, dataset, clock = small(tiny_folder, latents), GroupDataset(latents), Stopwatch(model.device)

    def of(rank: int, world_size: int) -> Rollout:
        monkeypatch.setattr(distributed, "shard", lambda total: distributed.shard_of(total, rank, world_size))
        source = Replayed(model, dataset, CondCache(model), config, clock)
        source.sampler = SimpleNamespace(next=lambda number: [1, 0])
        return source.next(0)

    whole, first, second = of(0, 1), of(0, 2), of(1, 2)
    assert (len(first.prompts), len(second.prompts)) == (2, 3)
    assert whole.image_index.tolist() == [0, 1, 3, 4, 5]
    assert whole.group_index.tolist() == [0, 0, 1, 1, 1]
    joined = first.cat(second)
    assert joined.prompts == whole.prompts
    for name in ("x0", "rewards", "image_index", "group_index"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def test_the_plan_says_that_nothing_is_sampled(
    tiny_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tiny_folder, pictures.with_name("run"), iterations=1, offline=str(pictures))
    run(config)
    out = capsys.readouterr().out
    assert f"learning offline from the dataset {pictures}; nothing is sampled" in out
    assert "2 of the dataset's 2 groups x up to 3 images = 6 images" in out
    assert network_forwards(config) == 60  # 6 images, 2 points, policy with a backward, old and ref


# --- what is refused


def spoilt(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Sets fields of a line; a value of None takes the field out."""

    def change(line: dict[str, Any]) -> None:
        for name, value in changes.items():
            line.pop(name, None)
            if value is not None:
                line[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoilt(promt="x"), "has the unknown key 'promt'. Did you mean 'prompt'?"),
        (spoilt(prompt=" "), "prompt=' ' must be a text"),
        (spoilt(metadata=[]), "metadata=[] an object"),
        (spoilt(images=None), "has neither images and latents"),
        (spoilt(ranks=[1, 2]), "has both rewards and ranks"),
        (spoilt(rewards=None), "has neither rewards and ranks"),
        (spoilt(rewards=[0.0, float("nan")]), "must be a list of finite numbers"),
        (spoilt(rewards=[0.0, "1"]), "must be a list of finite numbers"),
        (spoilt(rewards=[True, False]), "must be a list of finite numbers"),
        (spoilt(rewards=None, ranks=[0, 1]), "ranks=[0, 1] must be a list of whole numbers, 1 for the best"),
        (spoilt(rewards=[1.0], images=["png/3.png"]), "has 1 image; a group needs at least 2"),
        (spoilt(rewards=[1, 2, 3]), "has 2 images and 3 rewards or ranks"),
        (spoilt(images="png/3.png"), "must be a list of PNG files"),
        (spoilt(images=["png/3.png", "png/9.png"]), "cannot read the PNG"),
        (spoilt(images=["png/3.png", "dataset.json"]), "cannot read the PNG"),
        (spoilt(images=["png/3.png", "small.png"]), "small.png has 8 x 8 pixels"),
        (spoilt(scores={"a": [1]}), "scores 'a' has 1 numbers for 2 images"),
        (spoilt(scores={"a": [1, 2]}), "has the scores ['a'], and line 1 has []"),
        (spoilt(scores=[]), "scores=[] must be an object"),
        (spoilt(images=None, latents="x"), "latents='x' must be like"),
        (spoilt(images=None, latents={"file": "x", "tensor": "0"}), "has no latent_space to say which model's"),
    ],
)
def test_a_bad_line_is_named(change: Callable[[dict[str, Any]], None], message: str, pictures: Path) -> None:
    Image.new("RGB", (8, 8)).save(pictures / "small.png")
    first, second = lines(pictures)
    change(second)
    write_lines(pictures, first, second)
    with pytest.raises(UserError) as caught:
        GroupDataset(pictures)
    assert message in str(caught.value)
    assert f"line 2 of '{pictures / 'groups.jsonl'}'" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groups.jsonl", "", "there is no group in"),
        ("groups.jsonl", "{", "line 1 of"),
        ("groups.jsonl", "3", "must be an object in braces"),
        ("dataset.json", "{}", "has format None; this is dgpo"),
        ("dataset.json", '{"format": 2}', "has format 2"),
        ("dataset.json", '{"format": 1, "fromat": 1}', "Did you mean 'format'?"),
        ("dataset.json", '{"format": 1, "latent_space": 3}', "latent_space=3 must be an object"),
        ("dataset.json", None, "A dataset is a folder with dataset.json and groups.jsonl"),
        ("groups.jsonl", None, "A dataset is a folder with dataset.json and groups.jsonl"),
    ],
)
def test_a_bad_file_is_named(file: str, text: str | None, message: str, pictures: Path) -> None:
    (pictures / file).unlink()
    if text is not None:
        (pictures / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        GroupDataset(pictures)
    assert file in str(caught.value)


def test_latents_that_are_missing_misshapen_or_not_finite(model: Any, latents: Path) -> None:
    file = latents / "latents-00000.safetensors"
    good = load_file(file)
    for spoil, message in (
        ({"0": good["0"]}, "has no tensor '1'"),
        ({**good, "1": good["1"][:1].clone()}, "2 rewards and latent_shape [4, 8, 8] need"),
        ({**good, "1": good["1"][:, :2].clone()}, "are F32 [2, 2, 8, 8]"),
        ({**good, "1": good["1"].int()}, "are I32 [2, 4, 8, 8]"),
    ):
        save_file(spoil, file)
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            GroupDataset(latents)
        assert "line 2 of" in str(caught.value)
    save_file({**good, "1": good["1"] / 0}, file)
    with pytest.raises(UserError, match=r"line 2 of .* are not finite"):
        GroupDataset(latents).x0(1, [0], model)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"line 1 of .* cannot read the latents"):
        GroupDataset(latents)
    file.unlink()
    with pytest.raises(UserError, match=r"line 1 of .* cannot read the latents"):
        GroupDataset(latents)


def test_data_of_another_model_is_refused(model: Any, tiny_folder: Path, latents: Path, pictures: Path) -> None:
    with torch.no_grad():
        other = load_model(tiny_folder, device="cpu", sets=(), resolution=96)
    with pytest.raises(UserError, match=r"latent_shape \[4, 8, 8\] there and \[4, 12, 12\] here"):
        GroupDataset(latents).require_fits(other)
    with pytest.raises(UserError, match=r"line 1 of .*64 x 64 pixels, and the model draws 96 x 96"):
        GroupDataset(pictures).require_fits(other)
    with torch.no_grad():
        other = load_model(tiny_folder, device="cpu", sets=())
        next(other.pipeline.vae.parameters()).add_(1)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="belong to another model: autoencoder"):
        GroupDataset(latents).require_fits(other)
    GroupDataset(pictures).require_fits(other)
    out = latents.with_name("run")
    with pytest.raises(UserError, match="belong to another model: autoencoder"):
        run(small(tiny_folder, out, offline=str(latents)), model=other_with_sets(tiny_folder))
    assert not out.exists()


def other_with_sets(tiny_folder: Path) -> Any:
    other: Any = load_model(tiny_folder, device="cpu")
    with torch.no_grad():
        next(other.pipeline.vae.parameters()).add_(1)
    return other


@pytest.mark.parametrize("name", ["flow_grpo", "diffusion_nft", "ram"])
def test_algorithms_that_need_their_own_rollouts_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{algorithm_class(name).__name__} learns only from rollouts that it samples"):
        Config(offline="data", algorithm=algorithm_class(name)())


def test_rollouts_that_old_should_sample_are_not_taken_from_a_dataset() -> None:
    with pytest.raises(UserError, match=r"as does dgpo with sampling_switch=0"):
        Config(offline="data", algorithm=DGPO(sampling_switch=0))


def test_sampling_anew_is_refused() -> None:
    with pytest.raises(UserError, match="samples nothing; take redraw_groups=0"):
        Config(offline="data", redraw_groups=1, drop_equal_groups=True)


def test_groups_of_fewer_images_than_train_are_trained_whole(tiny_folder: Path, pictures: Path) -> None:
    config = small(tiny_folder, pictures.with_name("run"), iterations=1, train_images=4, offline=str(pictures))
    run(config)
    assert rows(pictures.with_name("run"))[0]["train/frac_trained"] == 1.0


# --- the commands and the page


def test_collect_writes_a_dataset_that_train_learns_from(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["collect", str(finished_run), "--groups", "3", "--group-size", "2"]
    assert main(words) == 0
    assert "groups: 3 groups of 2 images, mean reward" in capsys.readouterr().out
    dataset = GroupDataset("groups")
    assert dataset.sizes == [2, 2, 2]
    assert len(set(dataset.prompts.prompts)) == 3
    assert dataset.scores(0).keys() == {"runs:colour"}
    about = json.loads(Path("groups/dataset.json").read_text())["about"]
    assert about["rewards"] == {"runs:colour": 1.0}
    assert main(words) == 2
    assert "groups exists and is not replaced" in capsys.readouterr().err
    config = str(finished_run / "config.yaml")
    train = ["train", config, "--offline", "groups", "--out", "run", "--iterations", "1", "--eval-every", "0"]
    assert main(train) == 0
    assert "learning offline from the dataset groups" in capsys.readouterr().out


@pytest.mark.parametrize("colour", ["colour", "http://host:8000/v1"])
def test_collect_leaves_out_what_a_reward_dropped(colour: str, tiny_folder: Path, tmp_path: Path) -> None:
    """One image of the first group, two of the second, which is thereby none; `of_one` is for some prompts only."""
    prompts = load_prompts([("a cup", {"tag": "one"}), ("green", {"tag": "two"}), ("two dogs", {"tag": "one"})])
    rewards, tags = {colour: 1.0, "of_one": 1.0}, {"of_one": ("one",)}
    config = small(tiny_folder, tmp_path, rewards=rewards, reward_tags=tags, reward_failures={colour: "drop"})
    lost = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    functions = {
        colour: lambda images, *_: torch.arange(9.0).masked_fill(lost, torch.nan),
        "of_one": lambda images, *_: [1.0] * len(images),
    }
    model = load_model(tiny_folder, device="cpu", sets=("ref", "ema"))
    groups = list(scored_groups(model, prompts, trained_rewards(config, functions), config, 3))
    assert [len(group.x0) for group in groups] == [2, 3]
    first = groups[0]
    assert first.rewards.tolist() == [value + (first.metadata["tag"] == "one") for value in (1.0, 2.0)]
    assert all(group.scores.keys() == {colour} for group in groups)
    assert first.scores[colour].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("collect", "name a run folder, a model folder or id first"),
        ("collect tiny-sd3", "say how many groups to draw"),
        ("collect tiny-sd3 --groups many", "--groups many is no number of groups"),
        ("collect tiny-sd3 --groups 0", "would make an empty dataset"),
        ("train --offline nowhere", "cannot read the dataset's file 'nowhere/dataset.json'"),
    ],
)
def test_the_commands_refuse(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [line for line in DOCS.splitlines() if line.startswith("dgpo ")])
def test_the_pages_commands_exist(line: str) -> None:
    command, *words = line.split("#")[0].split()[1:]
    options = [word for word in words if word.startswith("--")]
    assert command in COMMANDS
    assert {*options} <= {"--groups", "--out", "--offline", "--algorithm", "--resume"}


def test_the_pages_own_dataset_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for snippet in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL):
        exec(compile(snippet, "offline.md", "exec"), {"__name__": "snippet"})
    dataset = GroupDataset("my_pairs")
    assert dataset.sizes == [2, 3]
    dataset.require_fits(load_model("tiny-sd3", device="cpu", sets=()))
