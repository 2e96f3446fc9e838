"""One rank of test_geometry.py, started by torchrun: what the loop does on this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from counting import counts_of_cases

from dgpo import distributed

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "models"))
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    distributed.init("cpu")
    assert distributed.world_size() == 2
    torch.set_num_threads(1)
    (out / f"rank-{distributed.rank()}.json").write_text(json.dumps(counts_of_cases(folder, out)))
    distributed.shutdown()
