"""The first moments of a command: what it imports, and how a signal ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dgpo
from dgpo.commands.main import COMMANDS

SOURCE = str(Path(dgpo.__file__).parents[1])
HEAVY = ["torch", "numpy", "diffusers", "transformers", "matplotlib", "tyro", "pydantic", "yaml", "rich", "PIL"]
IMPORTED = f"""
import sys
from dgpo.commands.main import main
code = main(sys.argv[1:])
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
sys.exit(code)
"""
TORCH = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):
        pass
except BaseException:
    print("dropped")
"""


def python(*words: str, path: str = SOURCE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 0, "dgpo train [RECIPE|FILE.yaml]"),
        ("--help", 0, "Recipes: tiny, shapes_all"),
        ("--version", 0, dgpo.__version__),
        ("trian", 2, "Did you mean 'train'?"),
        ("report --help", 0, "usage: dgpo report RUN"),
        ("compare --help", 0, "usage: dgpo compare RUN RUN"),
        ("lora --help", 0, "usage: dgpo lora fix FILE OUT"),
        ("model --help", 0, "usage: dgpo model [NAME]"),
        ("model", 0, "A Stable Diffusion 3 pipeline of 3.5 million parameters that draws 64x64 scenes"),
        ("model tiny-sd3-words", 0, "tiny-sd3-words"),
        ("model tiny-sd4", 2, "Did you mean 'tiny-sd3'?"),
        ("init --help", 0, "usage: dgpo init FILE.yaml"),
        ("init", 2, "name the file to write"),
        ("init mine.txt", 2, "let its name end in .yaml"),
    ],
)
def test_what_needs_no_model_is_answered_without_torch(words: str, code: int, said: str) -> None:
    done = python("-c", IMPORTED, *words.split())
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        *((f"{command} --help", 0, f"usage: dgpo {command}") for command in COMMANDS),
        ("reward check --help", 0, "usage: dgpo reward check NAME"),
        ("train tiny --iterations -4", 2, "iterations=-4 cannot work"),
        ("train tiny --iterations many", 2, "invalid"),
        ("train tiny --learning-rte 1", 2, "unknown field 'learning_rte'"),
        ("train tiny --algorithm.beta -1", 2, "beta=-1.0 would switch off the wrong groups"),
        ("train tiny --algorithm diffusion_dpo --algorithm.beta 0", 2, "beta=0.0 would ignore"),
        ("train tinny", 2, "Did you mean 'tiny'?"),
        ("plan tiny --group-size 1", 2, "group_size=1 cannot work"),
        ("bench --only nobody", 2, "no contender"),
        ("init new/my_run.yaml", 0, "Wrote new/my_run.yaml, with the values of the recipe tiny"),
        ("init new/my_run.yaml --model tiny-sd3-words --prompts cats dogs", 0, "of the recipe words"),
        ("init new/my_run.yaml --model tiny-sd4", 2, "there is no folder"),
    ],
)
def test_help_and_mistakes_in_fields_do_not_wait_for_torch(
    words: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = python("-c", IMPORTED, *words.split())
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    imported, *names = done.stdout.splitlines()[-1].split()
    assert imported == "imported:"
    assert "torch" not in names


def test_every_command_has_a_module_that_says_how_it_is_called() -> None:
    text = "import sys\nfrom dgpo.commands.main import usage\nprint(usage())"
    usage = python("-c", text).stdout
    assert [name for name in COMMANDS if f"\n  dgpo {name} " not in usage] == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_while_torch_is_imported_is_not_lost(name: str, tmp_path: Path) -> None:
    """Its C code drops the exception of a handler, as this stand-in does."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH.format(name=name))
    done = python("-m", "dgpo", "train", path=os.pathsep.join([str(tmp_path), SOURCE]))
    assert done.returncode == (75 if name in ("SIGTERM", "SIGUSR1") else 130)
    assert done.stderr.splitlines()[-1].startswith(f"dgpo: stopped by {name} before the first iteration")
    assert "Traceback" not in done.stderr
    assert not done.stdout
