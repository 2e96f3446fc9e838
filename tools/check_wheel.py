"""Install the wheel in clean environments of Python 3.10 to 3.13 and use it there; run after `make dist`.

An interpreter that this machine has gets a new environment with the ranges of pyproject.toml: imports, `dgpo --version`
and one iteration of training. For one that it lacks, pip only resolves the dependencies, and the output says so.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
TRAIN = "train tiny --iterations 1 --num-groups 2 --group-size 2 --eval-every 0 --report False --out run"


def main() -> int:
    """Check every version; the exit code is 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="such as 3.11 (default: 3.10 to 3.13)")
    versions = parser.parse_args().versions
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        print(f"dist holds {len(wheels)} wheels; run `make dist` first", file=sys.stderr)
        return 1
    found = [check(version, wheels[0]) for version in versions]
    print("\n".join(line for line, _ in found))
    return 0 if all(fine for _, fine in found) else 1


def check(version: str, wheel: Path) -> tuple[str, bool]:
    """A line that says what was done for one version of Python, and whether it went well."""
    interpreter = interpreter_of(version)
    try:
        if interpreter is None:
            resolve(version, wheel)
            return f"{version}  not on this machine: dependencies resolve, nothing ran", True
        return f"{version}  installed and trained: {use(interpreter, wheel)}", True
    except subprocess.CalledProcessError as error:
        told = (error.stderr or error.stdout or "").strip().splitlines()[-5:]
        return "\n  ".join([f"{version}  FAILED: {' '.join(map(str, error.cmd))}", *told]), False


def interpreter_of(version: str) -> str | None:
    """A working interpreter of that version on the path, or the one that runs this."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    path = shutil.which(f"python{version}")
    works = path and subprocess.run([path, "-m", "venv", "--help"], capture_output=True).returncode == 0
    return path if works else None


def use(interpreter: str, wheel: Path) -> str:
    """Install the wheel in a new environment, train for one iteration, and return what `dgpo --version` says."""
    with tempfile.TemporaryDirectory() as folder:
        run([interpreter, "-m", "venv", "env"], folder)
        python, command = (str(Path(folder) / "env" / "bin" / name) for name in ("python", "dgpo"))
        # torch alone by its exact version, as in the Makefile: the newest would fetch the CUDA build, some gigabytes
        run([python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), "torch"], folder)
        run([python, "-m", "pip", "install", "--quiet", str(wheel)], folder)
        run([command, *TRAIN.split()], folder)
        return run([command, "--version"], folder).strip()


def resolve(version: str, wheel: Path) -> None:
    """Have pip choose versions of all dependencies for another Python; it downloads metadata and installs nothing."""
    options = ["--dry-run", "--ignore-installed", "--only-binary", ":all:", "--python-version", version]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", folder, str(wheel)]
        run(command, folder)


def run(command: list[str], folder: str) -> str:
    """Run a command in a folder and return its standard output."""
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
