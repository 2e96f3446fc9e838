"""`dgpo sample`: draw pictures with a run's best weights, or a model, and what the run began with beside them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from dgpo.commands.words import announce

USAGE = {"dgpo sample RUN|MODEL --prompt TEXT": "draw pictures"}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Options of `dgpo sample`."""

    prompt: tuple[str, ...] = ()
    """One or more prompts."""
    prompts: str | None = None
    """More prompts, from a .txt or .jsonl file, or any other source that training takes."""
    images: int = 4
    """Pictures of each prompt."""
    seed: int = 0
    """Seed of the noise."""
    guidance_scale: float | None = None
    """Classifier-free guidance; None: as the run evaluates."""
    num_inference_steps: int | None = None
    """Solver steps; None: as the run evaluates."""
    compare: bool = False
    """Draw what the run began with too, from the same noise: rows and folders `before` and `after`."""
    out: Path = Path("samples")
    """A new folder for the pictures, each with its caption in a text file; the grid of all is OUT.png. A name that ends
    in .png: the grid alone. What exists is not replaced."""


def run(given: list[str]) -> int:
    """Write the pictures, and print where they are."""
    announce("sample", given)
    from dgpo.commands.configs import config_of, take_source
    from dgpo.commands.parse import parse

    usage = "dgpo sample RUN|MODEL --prompt TEXT"
    source, rest = take_source(given, usage)
    o = parse(Pictures(), rest, usage, "Draw pictures with a run's best weights, or a pipeline folder or id.")
    config = config_of(source)
    own = config.sampling
    sampling = replace(
        own,
        eval_guidance_scale=own.eval_guidance_scale if o.guidance_scale is None else o.guidance_scale,
        eval_num_inference_steps=(
            own.eval_num_inference_steps if o.num_inference_steps is None else o.num_inference_steps
        ),
    )
    from dgpo.data.prompts import PromptSet, load_prompts
    from dgpo.run.console import shown_progress
    from dgpo.training import apply

    config = replace(config, sampling=sampling, seed=o.seed)
    more = PromptSet([], []) if o.prompts is None else load_prompts(o.prompts)
    prompts = [*((text, {}) for text in o.prompt), *zip(more.prompts, more.metadata)]
    weights = apply.chosen(source, config)  # now: a run in progress may save others meanwhile
    with shown_progress() as tell:
        apply.sample(source, config, prompts=prompts, images=o.images, out=o.out, compare=o.compare, tell=tell)
    print(f"weights: {weights}", file=sys.stderr, flush=True)
    for path in dict.fromkeys((apply.grid_of(o.out), o.out)):
        print(path)
    return 0
