"""What the loop and LoRA cost where the network's compute dominates: a random SD3 of 12 layers, 512 wide.

    python benchmarks/medium_model.py --rounds 3

- an iteration of the loop over its bare network calls, with LoRA and with everything trained (`dgpo bench --overhead`);
- seconds an image of one forward and backward, LoRA against everything trained;
- a frozen forward through PEFT's layers (adapters off, and the adapter of `old`) over that of the bare network, with
  adapters of an eighth of the width and of the share that rank 32 has in SD3.5 medium.
Times are CPU times of the process, which other work on the machine disturbs less. Writes
benchmarks/results/medium_model.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from dgpo import DGPO, Config, LoraConfig, Sampling, load_model
from dgpo.bench.overhead import measure_overhead
from dgpo.run import folder as runfolder

RESULTS = Path(__file__).parent / "results"
TINY = "tiny-sd3"
IMAGES = 8
RANK, USUAL_RANK = 64, 11  # of 512; rank 32 of SD3.5 medium's 1536 is the share of 11


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    rounds = options.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        model = save_medium(Path(folder) / "model")
        result: dict[str, Any] = {"overhead": {}}
        for finetune in ("lora", "full"):
            measured = measure_overhead(config_of(model, finetune), rounds, Path(folder) / f"{finetune}.json")
            measured["config"]["model"] = "random SD3, 12 layers, width 512"
            result["overhead"][finetune] = measured
        result |= compare(model, rounds)
    result["environment"] = runfolder.conditions()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "medium_model.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("trained_seconds_per_image", "frozen_forward_over_bare")}, indent=1))


def save_medium(folder: Path) -> Path:
    """tiny-sd3 with a larger random transformer, which reads the same text and draws the same latents."""
    pipeline: Any = load_model(TINY, finetune="full", sets=()).pipeline
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel.from_config(
        {**pipeline.transformer.config, "num_layers": 12, "num_attention_heads": 8, "attention_head_dim": 64}
        | {"caption_projection_dim": 512}
    )
    pipeline.register_modules(transformer=transformer)
    StableDiffusion3Pipeline.save_pretrained(pipeline, folder)
    return folder


def config_of(model: Path, finetune: Any) -> Config:
    return Config(
        model=str(model),
        finetune=finetune,
        num_groups=2,
        group_size=IMAGES // 2,
        rewards={"shapes": 1.0},
        algorithm=DGPO(num_points=2, t_sampling="stratified", clip_range=None),
        sampling=Sampling(num_inference_steps=4, guidance_scale=1.0),
        lora=LoraConfig(rank=RANK, alpha=2 * RANK),
    )


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """LoRA against everything trained, and PEFT's frozen forwards against the bare network's; medians."""
    models = {
        "lora": load_model(folder, lora=LoraConfig(rank=RANK, alpha=2 * RANK)),
        "usual": load_model(folder, lora=LoraConfig(rank=USUAL_RANK, alpha=2 * USUAL_RANK)),
        "full": load_model(folder, finetune="full", sets=()),
    }
    cond = models["full"].encode(["a red circle"]).repeat(IMAGES)
    x, t = torch.randn(IMAGES, *models["full"].latent_shape), torch.rand(IMAGES)

    def trained(kind: str) -> Callable[[], None]:
        return lambda: models[kind].velocity(x, t, cond).square().mean().backward()

    @torch.no_grad()
    def frozen(kind: str, weights: str) -> None:
        models[kind].velocity(x, t, cond, weights=weights)

    calls = {
        "trained lora": trained("lora"),
        "trained full": trained("full"),
        "bare": lambda: frozen("full", "policy"),
        "ref": lambda: frozen("lora", "ref"),
        "old": lambda: frozen("lora", "old"),
        "old, usual rank": lambda: frozen("usual", "old"),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(3 * rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:
                times[name].append((time.process_time() - started) / IMAGES)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "trained_seconds_per_image": {kind: median[f"trained {kind}"] for kind in ("lora", "full")},
        "frozen_forward_over_bare": {name: median[name] / median["bare"] for name in ("ref", "old", "old, usual rank")},
        "seconds_per_image": times,
    }


if __name__ == "__main__":
    main()
