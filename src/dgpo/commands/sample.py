"""`dgpo sample`: draw pictures with a run's best weights, or a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dgpo.commands.words import announce

USAGE = {"dgpo sample RUN|MODEL --prompt TEXT": "draw pictures"}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Options of `dgpo sample`."""

    prompt: tuple[str, ...] = ()
    """One or more prompts."""
    images: int = 4
    """Pictures of each prompt."""
    seed: int = 0
    """Of the noise."""
    guidance_scale: float | None = None
    """None: as the run evaluates."""
    num_inference_steps: int | None = None
    """None: as the run evaluates."""
    out: Path = Path("samples.png")
    """The PNG to write; an existing one is not replaced."""


def run(given: list[str]) -> int:
    """Write the PNG, and print where it is."""
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
    from dgpo.training import apply

    config = replace(config, sampling=sampling, seed=o.seed)
    apply.sample(source, config, prompts=o.prompt, images=o.images, out=o.out)
    print(o.out)
    return 0
