"""Bad input of every kind, each in a process of its own: one message, exit code 2, no traceback, nothing left behind.

    python benchmarks/faults/bad_inputs.py

The table is `tests/helpers/bad_input_table.py`: files with bad configs, prompts and metadata, flags, and what must be
told. A case passes if its process ends with exit code 2 within two minutes, says the awaited words, shows no traceback,
and leaves the folder that it ran in as it was. `dgpo plan` tells of a problem on its page; every other command prints
one message that begins with "dgpo: ". Processes are forked from one that has planned a run, which imports what takes
seconds. Writes benchmarks/results/faults/bad_inputs.json, and ends with exit code 1 if a case failed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests" / "helpers"))

from bad_input_table import cases, write_files  # noqa: E402

from dgpo.commands.main import main as dgpo_main  # noqa: E402

RESULT = HERE.parent / "results/faults/bad_inputs.json"


def run(words: list[str], folder: Path, output: Path) -> int:
    """The exit code of one command in a process of its own; its output lies in `output`.out and .err."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # one that is not refused would train
        os.chdir(folder)
        for stream, end in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(output.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        code = 70
        try:
            code = dgpo_main(words)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def problems(line: str, message: str, folder: Path, output: Path) -> list[str]:
    """What is wrong with how a command ends."""
    before = contents(folder)
    code = run(shlex.split(line), folder, output)
    out, err = (output.with_suffix(end).read_text(encoding="utf-8") for end in (".out", ".err"))
    found = []
    if code != 2:
        found.append(f"exit code {code}")
    if "Traceback" in out + err:
        found.append("a traceback")
    if message not in out + err:
        found.append(f"does not say {message!r}: {(err or out)[-300:]}")
    if not line.startswith("plan ") and err.count("dgpo: ") != 1:
        found.append(f"{err.count('dgpo: ')} messages")
    if contents(folder) != before or (folder / "out").exists() or (folder / "runs").exists():
        found.append("files are left or changed")
    return found


def main() -> int:
    torch.set_num_threads(1)
    importlib.import_module("dgpo.training.dry_run")
    has_ocr = importlib.util.find_spec("rapidocr_onnxruntime") is not None
    counts: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "work", Path(place) / "output"
        folder.mkdir()
        write_files(folder)
        dgpo_main(["plan"])
        for line, message in cases(has_ocr):
            command = "train --dry-run" if line.endswith("--dry-run") else line.split()[0]
            counts[command] += 1
            wrong = problems(line, message, folder, output)
            if wrong:
                failed[line] = wrong
                print(f"FAILED  dgpo {line}\n        {'; '.join(wrong)}", flush=True)
    total = sum(counts.values())
    result = {"cases": total, "passed": total - len(failed), "by_command": dict(counts), "failed": failed}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{result['passed']} of {total} bad inputs end in one message with exit code 2 and leave nothing behind")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
