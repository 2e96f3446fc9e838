"""The embedded model before any reinforcement learning, and the autoencoder's round trip.

    python benchmarks/base_model.py

Scores tiny-sd3 on the seen and unseen lists of all six kinds at several guidance scales, and clean renders after the
autoencoder. Writes benchmarks/results/base_model.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from dgpo.core import seeds
from dgpo.data.prompts import load_prompts
from dgpo.models import load_model
from dgpo.models.text_cache import CondCache
from dgpo.recipes import recipe
from dgpo.rewards.combine import RewardSet
from dgpo.run import folder as runfolder
from dgpo.training.evaluate import evaluate
from dgpo.worlds.shapes.captions import build_captions, draw_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.5])
    options.add_argument("--images-per-prompt", type=int, default=4)
    options.add_argument("--model", default="tiny-sd3")
    given = options.parse_args()
    config = replace(recipe("shapes_all"), model=given.model, eval_images_per_prompt=given.images_per_prompt)
    model = load_model(config.model, finetune="full", sets=("ref",))
    sets = {name: load_prompts(source) for name, source in config.eval_prompts.items()}
    reward = RewardSet(config.rewards, watched=config.eval_rewards)
    found = {"round_trip": round_trip(model)}
    print(found)
    for scale in given.scales:
        at = replace(config, sampling=replace(config.sampling, eval_guidance_scale=scale))
        found[f"guidance {scale:g}"] = metrics = evaluate(model, CondCache(model), sets, reward, at, "policy").metrics
        strict = {name: round(value, 3) for name, value in metrics.items() if "strict" in name and "stderr" not in name}
        print(f"guidance {scale:g}: {strict}", flush=True)
    environment = runfolder.conditions()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "base_model.json").write_text(json.dumps({"environment": environment, **found}, indent=1) + "\n")


@torch.no_grad()
def round_trip(model, count: int = 600) -> dict[str, float]:
    """Scores of clean renders, before and after encoding and decoding."""
    table = build_captions()
    rng = seeds.generator(0, "round trip")
    rows = draw_prompts(table, count, rng)
    images = render(draw(requests(table.prompts).rows(rows), rng))
    vae = model.pipeline.vae
    latents = torch.cat([vae.encode(part * 2 - 1).latents for part in images.split(100)])
    decoded = torch.cat([vae.decode(part).sample.div(2).add(0.5).clamp(0, 1) for part in latents.split(100)])
    metadata = [table.prompts[row] for row in rows.tolist()]
    names = [m["prompt"] for m in metadata]
    score = RewardSet({"shapes_strict": 1.0}, watched=("shapes", "crispness"))
    clean, after = score(images, names, metadata)[0], score(decoded, names, metadata)[0]
    return {
        **{f"render/{name}": value.mean().item() for name, value in clean.items()},
        **{f"decoded/{name}": value.mean().item() for name, value in after.items()},
    }


if __name__ == "__main__":
    main()
