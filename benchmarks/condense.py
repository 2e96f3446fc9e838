"""Puts the results of `dgpo bench` in a few files: python benchmarks/condense.py WORK OUT.

OUT/bench.html       the page
OUT/runs.json        every run that is compared: config, machine and evaluations, without the log of its training
OUT/searches.json    the same of every rate of the searches
OUT/results.tar.gz   the raw results, as in benchmarks/results/time_to_score
OUT/logs.txt         what runs without a result have printed last
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

from dgpo.bench.page import write_page
from dgpo.bench.run import load, results
from dgpo.errors import UserError

LAST = 30  # lines of a log


def main(work: Path, out: Path) -> int:
    """Write the files, and say how many runs there are."""
    out.mkdir(parents=True, exist_ok=True)
    found = {"runs": results(work).glob("*.json"), "searches": (results(work) / "search").glob("*.json")}
    counts = {name: _gather(sorted(paths), out / f"{name}.json") for name, paths in found.items()}
    if results(work).exists():
        with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
            archive.add(results(work), "time_to_score")
    finished = {path.stem for path in results(work).rglob("*.json")}
    logs = [path for path in sorted((work / "runs").glob("*.log")) if path.stem not in finished]
    (out / "logs.txt").write_text("".join(f"== {path.stem}\n{_end_of(path)}\n" for path in logs), encoding="utf-8")
    print(f"{counts['runs']} runs and {counts['searches']} of searches are in {out}; {len(logs)} have no result")
    try:
        shutil.copy(write_page(work), out / "bench.html")
    except UserError as error:
        print(f"no page: {error}")
        return 1
    return 0


def _gather(paths: list[Path], target: Path) -> int:
    kept = [{key: value for key, value in load(path).items() if key not in ("metrics", "asked")} for path in paths]
    target.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return len(kept)


def _end_of(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:])


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
