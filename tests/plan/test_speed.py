"""Work and seconds, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from medium import short  # pyright: ignore[reportMissingImports] (beside this file)

from dgpo import DGPO, Sampling
from dgpo.plan.estimates import estimate
from dgpo.plan.gpus import GPU
from dgpo.plan.meta import Count
from dgpo.plan.runs import Runs
from dgpo.plan.speed import Work, seconds, work
from dgpo.training.geometry import geometry

RUNS = Runs(
    0,
    Count(),
    Count(flops=40, moved=400),
    Count(flops=6, moved=60, fp32_flops=6),
    Count(flops=30, moved=90, fp32_flops=2),
    None,
)
"""A solver step and a decode of four images, an update of two."""


def test_work_is_calls_times_their_counts() -> None:
    config = short(
        Path("tiny-sd3"),
        Path("x"),
        group_size=4,
        micro_batch_size=2,
        algorithm=DGPO(num_points=3, t_sampling="uniform"),  # reads ref and old
        sampling=Sampling(num_inference_steps=5, solver="heun", guidance_scale=2.0, batch_size=4),
    )
    found = work(config, geometry(config, 1), RUNS)
    assert found["sampling"] == (2 * 9 * 40, 2 * 9 * 400, 0)  # two batches, nine calls of Heun's five steps
    assert found["decoding"] == (2 * 6, 2 * 60, 2 * 6)
    # 8 images x 3 points x (ref, old, and the policy once more for groups cut in two), at 40 / 8 for a row
    assert found["frozen forwards"] == (8 * 3 * 3 * 5, 8 * 3 * 3 * 50, 0)
    assert found["forwards and backwards"] == (4 * 3 * 30, 4 * 3 * 90, 4 * 3 * 2)
    halved = work(config, geometry(config, 2), RUNS)
    assert halved["sampling"].flops == found["sampling"].flops / 2


def test_seconds_are_bound_by_arithmetic_or_by_memory() -> None:
    gpu = GPU("toy", 1, bf16=10, tf32=1, bandwidth=100)
    assert seconds(Work(4e12, 8e10), gpu) == (pytest.approx(1), pytest.approx(1))
    assert seconds(Work(4e12, 8e10, fp32_flops=4e12), gpu) == (pytest.approx(10), pytest.approx(1))
    assert seconds(Work(4e12, 8e10, fp32_flops=2e12), gpu) == (pytest.approx(5.5), pytest.approx(1))


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_each_product_counts_in_the_precision_it_is_computed_in(
    finetune: Literal["lora", "full"], tiny_folder: Path, tmp_path: Path
) -> None:
    """The VAE is fp32 in a bf16 run; the network is not, though a whole one's weights are."""

    def shares(dtype: Literal["fp32", "bf16"]) -> dict[str, float]:
        found = estimate(short(tiny_folder, tmp_path, dtype=dtype, finetune=finetune), 1, False, "a red cat")
        return {name: work.fp32_flops / work.flops for name, work in found.work.items()}

    assert set(shares("fp32").values()) == {1.0}
    network = dict.fromkeys(("sampling", "frozen forwards", "forwards and backwards"), 0.0)
    assert shares("bf16") == {**network, "decoding": 1.0}


def test_flops_of_the_network_are_those_of_its_layers(tiny_folder: Path, tmp_path: Path) -> None:
    """One row more in a batch costs the layers' products and attention's two."""
    config = short(tiny_folder, tmp_path, sampling=Sampling(num_inference_steps=1, guidance_scale=1.0), group_size=2)
    found = estimate(config, 1, True, "a red cat")
    # counted by hand: width 16, 16 image and 16 text tokens, two blocks, the first with a second attention
    assert found.work["sampling"].flops / 4 == pytest.approx(network_flops(16, 16, 16), rel=1e-9)


def network_flops(width: int, image: int, text: int) -> int:
    """A row's products in tests/models/tiny.py's transformer: 2 a b c for (a, b) @ (b, c)."""

    def linear(rows: int, a: int, b: int) -> int:
        return 2 * rows * a * b

    time = linear(1, 256, width) + linear(1, width, width) + linear(1, 32, width) + linear(1, width, width)
    ends = linear(image, 16, width) + linear(text, 32, width) + linear(1, width, 2 * width) + linear(image, width, 16)
    ffn = linear(1, width, 4 * width) + linear(1, 4 * width, width)
    joint = 4 * linear(1, width, width)  # q, k, v and out, a token
    attention = 2 * linear(image + text, image + text, width)
    adapters = 4 * (linear(1, width, 4) + linear(1, 4, width))
    first = (image + text) * (joint + adapters + ffn) + attention
    first += linear(1, width, 9 * width) + linear(1, width, 6 * width)
    first += image * joint + 2 * linear(image, image, width)  # the second attention of the image, without adapters
    # the last block's text is only read: no output, no feed-forward, scale and shift alone
    last = image * (joint + adapters + ffn) + text * 3 * (linear(1, width, width) + linear(1, width, 4) * 2)
    last += attention + linear(1, width, 6 * width) + linear(1, width, 2 * width)
    return time + ends + first + last
