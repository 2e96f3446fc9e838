"""What a reward costs: CPU milliseconds an image, one thread.

    python benchmarks/reward_times.py

Rewards without a model on 512x512 pictures; CLIP's image towers at their published sizes with random weights, which
take as long as trained ones. Writes benchmarks/results/reward_times.json. The time of `ocr` is in ocr_accuracy.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from dgpo.core.seeds import generator
from dgpo.rewards.base import Reward
from dgpo.rewards.builtin.preprocess import Preprocess
from dgpo.rewards.builtin.towers import Towers, _Parts
from dgpo.rewards.registry import resolve
from dgpo.run import folder as runfolder

RESULTS = Path(__file__).parent / "results"
SIMPLE = ("jpeg_compressibility", "jpeg_incompressibility", "brightness", "redness")
SIZES: dict[str, dict[str, Any]] = {
    "ViT-L/14 (clip, aesthetic)": {
        "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                          "intermediate_size": 4096, "patch_size": 14},
        "text_config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                        "intermediate_size": 3072},
        "projection_dim": 768,
    },
    "ViT-H/14 (pickscore, hpsv2)": {
        "vision_config": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
                          "intermediate_size": 5120, "patch_size": 14, "hidden_act": "gelu"},
        "text_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                        "intermediate_size": 4096, "hidden_act": "gelu"},
        "projection_dim": 1024,
    },
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    images = torch.nn.functional.interpolate(
        torch.rand(16, 3, 32, 32, generator=generator(0, "reward times")), (512, 512), mode="bicubic"
    ).clamp(0, 1)
    found = {name: milliseconds(name, of_images(resolve(name)), images) for name in SIMPLE}
    for name, sizes in SIZES.items():
        towers = Towers("clip", "random", device="cpu")
        towers.parts = _Parts(CLIPModel(CLIPConfig(**sizes)).eval(), None, Preprocess())
        found[f"image tower {name}"] = milliseconds(name, towers.image_embeds, images[:2])
    record = {"environment": runfolder.conditions(), "pixels": 512, "milliseconds_an_image": found}
    (RESULTS / "reward_times.json").write_text(json.dumps(record, indent=1) + "\n")


def of_images(reward: Reward) -> Callable[[Tensor], Any]:
    return lambda images: reward(images, [], [])


def milliseconds(name: str, run: Callable[[Tensor], Any], images: Tensor) -> float:
    run(images[:1])
    start = time.process_time()
    run(images)
    spent = round((time.process_time() - start) * 1000 / len(images), 2)
    print(f"{name}: {spent} ms", flush=True)
    return spent


if __name__ == "__main__":
    main()
