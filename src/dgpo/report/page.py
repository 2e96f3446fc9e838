"""`write_report`: one HTML page from a run folder, whole in itself: no script, no font, no picture from elsewhere.

Every section is left out where its numbers are missing, so a run still going, or one that never evaluates, has a page
too. The sections' data are made in `sections.py`, their look is `run_sections.html.j2`, which the studio
shows too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo.errors import UserError
from dgpo.report import sections
from dgpo.report.grids import read_samples
from dgpo.report.log import find, read_log, read_mapping
from dgpo.report.pictures import Address, embedded, pictures
from dgpo.report.templates import template
from dgpo.report.verdict import noise_scale_sentence, verdict
from dgpo.report.weights import of_the_run
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.utils.files import whole
from dgpo.utils.places import require_no_part


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from what the run has logged so far, and return its path."""
    run_dir = Path(run_dir)
    require_no_part(run_dir)
    page = run_dir / "report.html"
    with whole(page) as unfinished:
        unfinished.write_text(render(run_dir), encoding="utf-8")
    return page


class ReportWriter(Callback):
    """Writes the page at every evaluation and when the run ends."""

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        write_report(run.folder)

    def on_end(self, run: Progress) -> None:
        write_report(run.folder)


def render(run_dir: Path, address: Address = embedded) -> str:
    """The page's text."""
    return template("report", "template.html.j2").render(contents(run_dir, address))


def contents(run_dir: Path, address: Address = embedded) -> dict[str, Any]:
    """What `template.html.j2` and `run_sections.html.j2` show. address: where the page loads pictures from."""
    config = read_mapping(run_dir / "config.yaml")
    log = read_log(run_dir / "metrics.jsonl")
    if not config and not log.columns:
        raise UserError(
            f"{run_dir} holds neither config.yaml nor metrics.jsonl, so it is no run folder. "
            "Name the folder that `dgpo train --out` wrote."
        )
    return {
        "heading": sections.heading(config, run_dir.resolve().name),
        "verdict": verdict(log, config),
        "weights": of_the_run(log, run_dir),
        "scores": sections.scores(log, config),
        "pictures": pictures(read_samples(run_dir), config, address),
        "legend": sections.set_colours(log),
        "curves": sections.curves(log, config),
        "tasks": sections.tasks(log, config),
        "health": sections.health(log, config),
        "noise_scale": noise_scale_sentence(log, find(config, "num_groups")),
        "times": sections.times(log),
        "reward_seconds": sections.reward_seconds(log),
        "config": sections.tables(config),
        "environment": sections.tables(read_mapping(run_dir / "environment.json")),
    }
