"""What `dgpo plan` foresees of a run's peak memory, against what the run takes.

    python benchmarks/plan_memory.py

Two iterations each of tiny-sd3 and of two larger random transformers in its pipeline, with LoRA and whole, with and
without gradient checkpointing, in fp32 and, once, in bf16. Measured is the peak of live tensors on the CPU, weights
included (`dgpo.utils.peak_memory`); what kernels take for themselves is in neither number. Writes
benchmarks/results/plan_memory.json.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.utils import logging

import dgpo
from dgpo import DGPO, Config, Sampling
from dgpo.bench.overhead import _tensors_of
from dgpo.models import locate
from dgpo.plan.estimates import estimate
from dgpo.recipes import recipe
from dgpo.run import folder as runfolder
from dgpo.training.setup import load
from dgpo.utils.peak_memory import peak_memory

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "6 layers of 256": {"num_layers": 6, "num_attention_heads": 8, "attention_head_dim": 32},
    "8 layers of 384, dual attention": {
        "num_layers": 8,
        "num_attention_heads": 6,
        "attention_head_dim": 64,
        "dual_attention_layers": (0, 1, 2),
        "qk_norm": "rms_norm",
    },
}


def main() -> None:
    logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        models = {"tiny-sd3": locate("tiny-sd3"), **{name: save_random(Path(place), name) for name in SIZES}}
        pairs = itertools.product(("lora", "full"), (False, True))  # trained, checkpointing
        settings: list[dict[str, Any]] = [
            {"finetune": finetune, "gradient_checkpointing": again} for finetune, again in pairs
        ]
        settings.append({"finetune": "lora", "dtype": "bf16"})
        for number, (name, changes) in enumerate(itertools.product(models, settings)):
            config = short(models[name], str(Path(place) / f"run{number}"), changes)
            rows.append({"model": name, **changes, **compared(config)})
            print(json.dumps(rows[-1]), flush=True)
    environment = runfolder.conditions()
    (RESULTS / "plan_memory.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    ratios = [row["ratio"] for row in rows]
    print(f"foreseen over measured: {min(ratios):.3f} to {max(ratios):.3f}")


def save_random(place: Path, name: str) -> str:
    """The embedded pipeline with another transformer."""
    folder = locate("tiny-sd3")
    nothing: Any = None
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=nothing, tokenizer_3=nothing)
    size = SIZES[name]
    width = size["num_attention_heads"] * size["attention_head_dim"]
    config = {**pipeline.transformer.config, **size, "caption_projection_dim": width}
    pipeline.transformer = SD3Transformer2DModel.from_config(config)
    path = place / name.replace(" ", "-").replace(",", "")
    pipeline.save_pretrained(path)
    return str(path)


def short(model: str, out: str, changes: dict[str, Any]) -> Config:
    """Two iterations of two groups of four images, without evaluations and checkpoints."""
    config = replace(recipe("tiny"), model=model, out=out, iterations=2, num_groups=2, group_size=4, device="cpu")
    config = replace(config, eval_every=0, checkpoint_every=0, noise_scale_every=0, free_text_encoders=False)
    config = replace(config, algorithm=DGPO(beta=100.0, num_points=2, t_sampling="uniform"))
    return replace(config, sampling=Sampling(num_inference_steps=2, guidance_scale=1.0), **changes)


def compared(config: Config) -> dict[str, Any]:
    """Bytes foreseen and measured."""
    found = estimate(config, 1, True, "a red circle")
    assert found.peak is not None, found.unknown
    model: Any = load(config, torch.device("cpu"))
    with peak_memory(list(_tensors_of(model)), torch.device("cpu")) as peak:
        dgpo.train(config, model=model)
    return {"foreseen": found.peak, "measured": peak.bytes, "ratio": found.peak / peak.bytes, "largest": found.largest}


if __name__ == "__main__":
    main()
