"""What is done with a run or a model outside of training: evaluate it, draw with it, collect groups to learn from.

`source` is a run folder, whose best weights are used, one of a run's checkpoints, or a model: a pipeline folder, a hub
id or an embedded model. As long as no evaluation has followed a run's training, its newest weights are used: the only
evaluation is then that of the weights it began with.
`config` says everything else; None is the run's own, or for a model the defaults. Another one for a run is best made
from its own: `dataclasses.replace(config_of(run), ...)`, for it also says what was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo.algorithms.registry import stand_in
from dgpo.config import AUTOMATIC, OWN_SETS, Config, has_automatic, in_place_of_automatic, load_yaml, to_dict
from dgpo.config_checks import require_complete
from dgpo.core import seeds
from dgpo.data.groups import Group, require_new, write_groups
from dgpo.data.image_folder import SUFFIXES, write_folder
from dgpo.data.own_prompts import evaluation_sets, trained_prompts
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.data.sampler import PromptSampler
from dgpo.errors import UserError, warn
from dgpo.models import VelocityModel, locate
from dgpo.models.configured import load_configured
from dgpo.models.long_text import long_prompts
from dgpo.models.text_cache import CondCache
from dgpo.report.grids import sample_grid
from dgpo.rewards.base import Reward, RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.run import checkpoint, prompt_lists
from dgpo.run.changes import changes
from dgpo.run.folder import environment, reading_of
from dgpo.training.draw import Drawn, at_rollout_size, chunks, counted, draw, for_evaluation, grid
from dgpo.training.evaluate import evaluate as evaluate_model
from dgpo.training.placing import with_offload
from dgpo.training.setup import all_rewards, require_named, trained_rewards
from dgpo.utils.devices import device_of
from dgpo.utils.progress import Tell, silent

BEFORE, AFTER = "before", "after"
_WEIGHTS = {BEFORE: "policy", AFTER: "ema"}
"""The weight sets of a loaded run: no step has trained its policy, which is what the run began with."""


class Chosen(NamedTuple):
    """Which weights a source stands for."""

    checkpoint: Path | None  # None: of a model, as it is
    why: str
    doubt: str = ""  # what speaks against them

    def __str__(self) -> str:
        """Such as runs/tiny/checkpoints/iteration-000040 (best)."""
        if self.checkpoint is None:
            return self.why
        return f"{self.checkpoint} ({self.why})" if self.why else str(self.checkpoint)


class Scores(NamedTuple):
    """What an evaluation outside of a run found."""

    weights: str  # which they were
    metrics: dict[str, float]  # eval/SET/SCORE and, below it, TAG, stderr, missing, retries, and change as in a run
    before: dict[str, float]  # the same of what the run began with, without changes; empty where that was not scored


class Collected(NamedTuple):
    """A dataset that was written."""

    folder: Path
    groups: int  # as many as were asked for, without those that a failing reward left with fewer than two images
    group_size: int  # images of a group, before a failing reward dropped any
    reward: float  # mean over images
    spread: float  # standard deviation within a group, mean over groups


def config_of(source: str | Path) -> Config:
    """A run's own config, but for its algorithm, which nothing here uses; for a model, the defaults with that model."""
    if _is_run(source):
        return load_yaml(Path(source) / "config.yaml", algorithm=stand_in())
    locate(source, or_run=True)  # so that a mistyped run is not told what a model lacks
    return Config(model=str(source), algorithm=stand_in())


def _is_run(source: str | Path) -> bool:
    return (Path(source) / "config.yaml").is_file()


def _config(source: str | Path, config: Config | None) -> Config:
    """The given config, or the source's own; a model that is the source is also the config's."""
    config = config_of(source) if config is None else config
    return config if _is_run(source) else replace(config, model=str(source))


def load_trained(source: str | Path, config: Config) -> tuple[VelocityModel, str]:
    """A run's model with the averaged weights that `chosen` finds, or a model.

    Returns the model, whose weight set "ema" holds them, and a line that says which weights these are. The set "policy"
    is what a run began with. Blocks are not compiled: what is drawn here is seldom worth the minutes.
    """
    return _loaded(chosen(source, config), config)


def _loaded(weights: Chosen, config: Config) -> tuple[VelocityModel, str]:
    tensors = None if weights.checkpoint is None else checkpoint.load(weights.checkpoint)[0]["ema"]
    config = with_offload(config, torch.device(device_of(config.device)))
    model = load_configured(replace(config, compile=False), ("ref", "ema"))
    if tensors is not None:
        model.weights.load("ema", tensors)
    return model, str(weights)


def chosen(source: str | Path, config: Config | None = None) -> Chosen:
    """Which weights are used of a source, without loading them: of a run those of its best evaluation."""
    if not _is_run(source):
        return Chosen(None, f"{_config(source, config).model}, as pretrained")
    if (Path(source) / "state.json").is_file():
        return Chosen(Path(source), "")
    newest = checkpoint.latest(source)
    if newest is None:
        model = _config(source, config).model
        raise UserError(f"{source} holds no checkpoint yet; to look at the model it started from, name that: {model}")
    state = checkpoint.read_state(newest)
    best = checkpoint.folder_of(source, state["best_iteration"])
    if state.get("evaluated") == 0 < checkpoint.iteration_of(newest):
        return Chosen(newest, "newest; no evaluation has followed its training yet")
    if not best.is_dir():
        return Chosen(newest, "newest")
    if state["best_iteration"] == 0 < checkpoint.iteration_of(newest):
        return Chosen(
            best,
            "best",
            f"no evaluation of {source} was better than the one before training, so its "
            "weights are used, which nothing has trained: before and after are the same. To use the newest, name "
            f"their checkpoint: {newest}",
        )
    return Chosen(best, "best, but held-out scores fell: see the report" if state.get("best_alarmed") else "best")


def _load(source: str | Path, config: Config) -> tuple[VelocityModel, str]:
    """`load_trained`, with a word of warning where the weights are hardly those that one wants."""
    weights = chosen(source, config)
    warn(filter(None, [weights.doubt]))
    with reading_of(source):
        return _loaded(weights, config)


def evaluate(
    source: str | Path,
    config: Config | None = None,
    *,
    compare: bool = True,
    reward_functions: Mapping[str, Reward] | None = None,
    tell: Tell = silent,
) -> Scores:
    """Score a run's best weights, or a model, on the sets of `eval_prompts` by `rewards` and `eval_rewards`.

    compare: also draw and score what a run began with, with the same noise, for as long again; `metrics` then has the
        paired change of each score (change, and of 8 prompts or more change_low and change_high, its 95 % interval)
    reward_functions: functions for names in the config's `rewards` and `eval_rewards`, as `train` takes them
    tell: hears how far the work is
    """
    config = _config(source, config)
    automatic = has_automatic(config.eval_prompts)
    if not config.eval_prompts or (automatic and not config.prompts and config.offline is None):
        what = "has auto=prompts, and prompts " if config.eval_prompts not in ({}, AUTOMATIC) else ""
        raise UserError(f"eval_prompts {what}is empty: name a set, such as --eval-prompts test=prompts.txt")
    if not config.rewards:
        raise UserError("rewards is empty: name what evaluations score, such as --rewards clip aesthetic")
    require_named(config, reward_functions or {})
    with reading_of(source):
        sets = evaluation_sets(config, config_of(source) if _is_run(source) else None)
        reward = all_rewards(config, reward_functions)
    sources = in_place_of_automatic(OWN_SETS, config.eval_prompts)
    own = prompt_lists.hashes({name: some for name, some in sets.items() if sources[name] in OWN_SETS.values()})
    prompt_lists.require_same(Path(source), own, "evaluate another list: --eval-prompts test=FILE")
    for name, prompts in sets.items():
        warn(f"{name}: {doubt}" for doubt in reward.check(prompts))
    tell("loading", 0, 0)
    model, which = _load(source, config)
    texts = [text for prompts in sets.values() for text in prompts.prompts]
    warn(long_prompts(model, texts))
    encode = CondCache(model, config.prompt_cache, tell=tell)
    if config.free_text_encoders:
        encode.know_all(texts)
    names = (BEFORE, AFTER) if compare and _is_run(source) else (AFTER,)
    found = {
        name: evaluate_model(model, encode, sets, reward, config, _WEIGHTS[name], _part(tell, n, len(names)))
        for n, name in enumerate(names)
    }
    after, before = found[AFTER], found.get(BEFORE)
    moved = changes(before.scores, after.scores, after.distinct) if before else {}
    return Scores(which, after.metrics | moved, before.metrics if before else {})


def _part(tell: Tell, number: int, of: int) -> Tell:
    """For one of several evaluations: all their images are counted as one."""

    def told(phase: str, done: int, total: int) -> None:
        _further(tell, phase, number * total, of * total, done)

    return told


def sample(
    source: str | Path,
    config: Config | None = None,
    *,
    prompts: Iterable[Any],
    images: int = 4,
    out: str | Path | None = None,
    compare: bool = False,
    tell: Tell = silent,
) -> Tensor:
    """Draw pictures with a run's best weights, or a model: (len(prompts), images, 3, H, W) fp32 in [0, 1], on the CPU.

    prompts: a list of texts or of (text, metadata), or what `load_prompts` returns
    images: of each prompt; they depend on the config's seed, the prompt's place and the image's number only
    out: a new folder for the pictures, each beside its caption in a text file, with a grid of all beside it, as
        OUT.png. A name that ends in .png: the grid alone
    compare: also draw what the run began with, from the same noise. Returns (2, len(prompts), images, 3, H, W): before
        and after, which are also two folders in `out`
    tell: hears how far the work is
    """
    config, texts = _config(source, config), _some_prompts(prompts, images)
    if compare:
        _require_run(source)
    place = None if out is None else _new_place(Path(out))
    tell("loading", 0, 0)
    model, _ = _load(source, config)
    warn(long_prompts(model, texts.prompts))
    cond = CondCache(model, config.prompt_cache, tell=tell)(texts.prompts).repeat(images)
    if config.free_text_encoders:
        model.free_encoders()
    names, count = ((BEFORE, AFTER) if compare else (AFTER,)), len(texts) * images
    pictures = {}
    for n, name in enumerate(names):
        streams = [seeds.generator(config.seed, "sample", p, i) for p in range(len(texts)) for i in range(images)]
        batches = draw(model, cond, streams, for_evaluation(config.sampling), _WEIGHTS[name])
        told = counted(batches, partial(_further, tell, "sampling", n * count, len(names) * count))
        pictures[name] = Drawn.cat([*told]).images.float().cpu().unflatten(0, (len(texts), images))
    if place is not None:
        _write_pictures(place, pictures, texts)
    return torch.stack([*pictures.values()]) if compare else pictures[AFTER]


def _some_prompts(prompts: Iterable[Any], images: int) -> PromptSet:
    if isinstance(prompts, str):
        raise UserError(
            f"prompts={prompts!r} is one text; give a list of texts: prompts=[{prompts!r}], or "
            "prompts=load_prompts(FILE)"
        )
    rows = prompts if isinstance(prompts, PromptSet) else [*prompts]
    if images < 1 or not rows:
        raise UserError(
            "there is nothing to draw: give at least one --prompt (or --prompts FILE) and --images 1 or more"
        )
    return load_prompts(rows)


def _require_run(source: str | Path) -> None:
    if not _is_run(source):
        raise UserError(
            f"{source} is a model, which has no before and after: nothing of it was trained here. Name a run folder to "
            "compare, or leave compare out"
        )


def _further(tell: Tell, phase: str, before: int, total: int, done: int) -> None:
    """Tell what is done of one of several parts that count as one."""
    tell(phase, before + done, total)


def _write_pictures(place: Path, pictures: Mapping[str, Tensor], texts: PromptSet) -> None:
    """The grid, in which the rows of a prompt follow its text, and the folder. pictures: (p, k, 3, H, W) by name."""
    rows, labels = torch.stack([*pictures.values()], 1), [*pictures] if len(pictures) > 1 else []
    try:
        folder = place.with_suffix("") if place.suffix == ".png" else place
        grid = sample_grid(rows.flatten(0, 2), rows.shape[2], labels=labels * len(texts), headings=texts.prompts)
        grid.save(grid_of(place))
        if folder == place:
            for name, images in pictures.items():
                write_folder(folder / name if labels else folder, images, texts)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error}. Choose another --out") from error


def collect(
    source: str | Path,
    config: Config | None = None,
    *,
    groups: int,
    out: str | Path = "groups",
    reward_functions: Mapping[str, Reward] | None = None,
    tell: Tell = silent,
) -> Collected:
    """Draw and score groups of images for the config's prompts into the new dataset folder `out`.

    `train(Config(offline=out, ...))` learns from it. A group has `config.group_size` images. Prompts that a run held
    out stay out.

    reward_functions: functions for names in the config's rewards, as `train` takes them
    tell: hears how far the work is
    """
    config, folder = _config(source, config), Path(out)
    if groups < 1:
        raise UserError(f"--groups {groups} would make an empty dataset; give at least 1")
    require_complete(replace(config, offline=None))
    require_new(folder)
    require_named(config, reward_functions or {})
    with reading_of(source):
        prompts, reward = _to_draw(source, config), trained_rewards(config, reward_functions)
    warn(reward.check(prompts))
    tell("loading", 0, 0)
    model, which = _load(source, config)
    warn(long_prompts(model, prompts.prompts))
    model = at_rollout_size(model, config.sampling)
    sampling = {**asdict(config.sampling), "sigmas": grid(model, config.sampling).tolist()}
    about = {
        "weights": which,
        "prompts": config.prompts,
        "rewards": config.rewards,
        "sampling": sampling,
        "seed": config.seed,
        "environment": environment(),
    }
    rewards: list[Tensor] = []

    def noted() -> Iterator[Group]:
        for group in scored_groups(model, prompts, reward, config, groups, tell):
            rewards.append(group.rewards)
            yield group
        if not rewards:
            raise RewardError("no group has two images with a reward: the rewards failed, and their policy drops those")

    write_groups(folder, noted(), model.latent_space, about)
    spread = torch.stack([r.std(correction=0) for r in rewards]).mean()
    return Collected(folder, len(rewards), config.group_size, float(torch.cat(rewards).mean()), float(spread))


def _to_draw(source: str | Path, config: Config) -> PromptSet:
    """The config's prompts; of a run's own not those that it held out, which would train whoever learns from these."""
    run = config_of(source) if _is_run(source) else None
    if run is None or run.offline is not None or to_dict(run)["prompts"] != to_dict(config)["prompts"]:
        return load_prompts(config.prompts)
    prompts = trained_prompts(run)
    prompt_lists.require_same(Path(source), prompt_lists.hashes({}, prompts), "give other prompts: --prompts FILE")
    return prompts


def scored_groups(
    model: VelocityModel, prompts: PromptSet, reward: RewardSet, config: Config, number: int, tell: Tell = silent
) -> Iterator[Group]:
    """`number` groups in the order of a run's prompts, by the weights "ema"; as many at a time as fill a batch.

    Without images that a reward dropped, and groups of which it left fewer than two. Every group has the same scores,
    so those that are for some prompts only are not among them.
    """
    size, sampling = config.group_size, config.sampling
    encode = CondCache(model, config.prompt_cache, tell=tell if config.free_text_encoders else silent)
    index = PromptSampler(len(prompts), config.seed).next(number)
    if config.free_text_encoders:
        encode.know_all(prompts.subset(index).prompts)
    for groups in chunks(number, max(1, sampling.batch_size // size)):
        batch = prompts.subset(i for i in index[groups] for _ in range(size))
        streams = [seeds.generator(config.seed, "collect", g, i) for g in range(number)[groups] for i in range(size)]
        drawn = draw(model, encode(batch.prompts), streams, sampling, "ema")
        told = counted(drawn, partial(_further, tell, "sampling", groups.start * size, number * size))
        x0, images, _ = Drawn.cat([*told])
        own = torch.arange(len(batch)) // size
        scores, rewards = reward(images, batch.prompts, batch.metadata, own)
        for place in range(len(batch) // size):
            rows = ((own == place) & ~rewards.isnan()).nonzero().flatten()
            if len(rows) > 1:
                prompt, metadata = batch.prompts[place * size], batch.metadata[place * size]
                kept = {name: score[rows] for name, score in scores.items() if reward.for_all(name)}
                yield Group(prompt, metadata, x0[rows.to(x0.device)], rewards[rows], kept)


def grid_of(out: Path) -> Path:
    """Where `sample` puts the grid."""
    return out if out.suffix == ".png" else out.with_name(f"{out.name}.png")


def _new_place(out: Path) -> Path:
    """`out`, before anything is drawn: it and the grid are new, and the folder around them is made."""
    if out.suffix in SUFFIXES and out.suffix != ".png":
        raise UserError(f"{out} would be no PNG; let --out be the name of a folder, or end in .png")
    taken = next((path for path in (out, grid_of(out)) if path.exists()), None)
    if taken is not None:
        raise UserError(f"{taken} exists and is not replaced; choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of {out}: {error}. Choose another --out") from error
    return out
