"""Build the documentation into site/; a warning, a broken link or a missing picture is an error.

The site has the pages of docs/, the pictures of assets/ and three pages that lie elsewhere in the repository. They are
brought together in build/docs, so that every page's links are right both there and where the page lies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGED = ROOT / "build" / "docs"
ELSEWHERE = {
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
WORKER = "https://unpkg.com/iframe-worker/shim"
FETCHED = re.compile(r"(?:src=|<link[^>]* href=)\"(https?://[^\"]+)")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])|(?<=src=\")([^\"]+)(?=\")|(?<=srcset=\")([^\"]+)(?=\")")


def main() -> int:
    """Bring the pages together, check their links to files, build the site and put beside it what it would fetch."""
    stage()
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    missing = missing_files(STAGED)
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    return status or vendor()


def stage() -> None:
    """Copy all pages and pictures into build/docs, with their links made right there."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGED)
    shutil.copytree(ROOT / "assets", STAGED / "assets")
    shutil.copy(ROOT / "tools" / "web" / "style.css", STAGED)
    for source in [*(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), *ELSEWHERE]:
        target = STAGED / ELSEWHERE.get(source, Path(source).name)
        target.write_text(staged_text(ROOT / source), encoding="utf-8")


def staged_text(page: Path) -> str:
    """The page with its links as they are in build/docs."""
    return LINK.sub(lambda match: staged_link(match.group(), page.parent), page.read_text(encoding="utf-8"))


def staged_link(link: str, folder: Path) -> str:
    """The address in build/docs of what a page in `folder` links to; unchanged where the site does not have it."""
    if re.match(r"\w+:", link):
        return link
    path = os.path.relpath(folder / link, ROOT).replace(os.sep, "/")
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    return path.removeprefix("docs/") if path.startswith(("docs/", "assets/")) else link


def vendor() -> int:
    """Put beside the pages what they would fetch: a worker for search in files, and a font for formulas."""
    shutil.copy(ROOT / "tools" / "web" / "iframe-worker.js", ROOT / "site" / "assets")
    font = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    (ROOT / "site" / "assets" / font.name).write_bytes(font.read_bytes())
    outside = []
    for page in sorted((ROOT / "site").glob("*.html")):
        text = page.read_text(encoding="utf-8").replace(WORKER, "assets/iframe-worker.js")
        page.write_text(text, encoding="utf-8")
        outside += [f"{page.name} fetches {address}" for address in FETCHED.findall(text)]
    print("\n".join(outside), file=sys.stderr, end="")
    return bool(outside)


def missing_files(folder: Path) -> list[str]:
    """A line for every link of a page to a file that the folder lacks."""
    return [
        f"{page.name} links to {link}, which the site does not have"
        for page in sorted(folder.glob("*.md"))
        for link in (match.group() for match in LINK.finditer(page.read_text(encoding="utf-8")))
        if not re.match(r"\w+:", link) and not (folder / link).exists()
    ]


if __name__ == "__main__":
    sys.exit(main())
