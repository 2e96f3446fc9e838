"""Which weights of a run were evaluated as the best, and where they are: for its page and for its cards."""

from __future__ import annotations

from pathlib import Path

from dgpo.report.log import Log
from dgpo.report.words import number
from dgpo.run.best import Standing, best
from dgpo.run.checkpoint import folder_of


def of_the_run(log: Log, run: Path) -> str:
    """Where the best weights are, if they are not the last; empty otherwise."""
    standings = log.standings()
    found = best(standings)
    if found is None or found == standings[-1]:
        return ""
    scores = _scores(found, standings[-1], f"after iteration {standings[-1].iteration}")
    if found == standings[0]:
        return f"No evaluation was better than the first one, that of the weights before training ({scores})."
    folders = [path for path in (run / "best", folder_of(run, found.iteration)) if path.is_dir()]
    place = f" Its weights are in {folders[0].relative_to(run)}/ of the run folder." if folders else ""
    last = " Those in final/ are the last ones." if (run / "best").is_dir() else ""
    return (
        f"The best evaluation was that after iteration {found.iteration} ({scores}). dgpo sample, eval and collect use "
        f"its weights.{place}{last}"
    )


def of_these_weights(whole: Log, log: Log, run: Path) -> str:
    """How the weights after the last iteration of `log` were evaluated beside others of the run, whose log is whole."""
    standings = whole.standings()
    found, own = best(standings), next(reversed(log.standings()), None)
    if found is None or own is None or len(standings) < 2:
        return ""
    if found == own:
        more = f"; the run went on to iteration {standings[-1].iteration}" if standings[-1] != own else ""
        return f"Their evaluation was the best of the run{more}."
    scores = _scores(found, own, "here")
    if found == standings[0]:
        return f"No evaluation of the run was better than the one before training ({scores})."
    place = "; its weights are in best/ of the run folder" if (run / "best").is_dir() else ""
    return f"The evaluation after iteration {found.iteration} was better ({scores}){place}."


def _scores(found: Standing, own: Standing, where: str) -> str:
    """The two rewards, and whether an alarm speaks against one of them."""
    size = max(abs(found.score), abs(own.score))
    alarmed = ", with an alarm" if own.alarmed and not found.alarmed else ""
    return f"reward {number(found.score, size)} there, {number(own.score, size)} {where}{alarmed}"
