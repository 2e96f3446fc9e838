"""The README's picture: the first and the last samples of a run, the same prompts and the same noise.

python benchmarks/picture.py runs/demo assets/before_after.png --columns 8
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from dgpo.report.grids import read_samples


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--columns", type=int, default=8)
    given = options.parse_args()
    samples = read_samples(given.run)
    if samples is None:
        raise SystemExit(f"{given.run} has no samples")
    first, last = min(samples.iterations), max(samples.iterations)
    count = min(given.columns, len(samples.prompts))
    figure, axes = plt.subplots(2, count, figsize=(1.35 * count, 3.3), dpi=110)
    for row, (label, iteration) in enumerate((("before", first), (f"after {last} iterations", last))):
        for column, path in enumerate(samples.iterations[iteration][:count]):
            axis = axes[row, column]
            axis.imshow(Image.open(path), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(samples.prompts[column], 16)), fontsize=8)
        axes[row, 0].set_ylabel(label, fontsize=8)
    figure.tight_layout(pad=0.4)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out)


if __name__ == "__main__":
    main()
