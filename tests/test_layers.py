"""Imports point downward: a file imports from its own package and from those before it in `ORDER`."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

ORDER = (
    *("errors", "utils", "core", "types", "algorithms", "config_checks", "config", "distributed", "models", "worlds"),
    *(
        "data",
        "rewards",
        "run",
        "report",
        "teach",
        "training",
        "plan",
        "recipes",
        "bench",
        "studio",
        "commands",
        "__init__",
        "__main__",
    ),
)

# A file or folder -> what it may import beside that, and why.
EXCEPTIONS = {
    "config_checks.py": "config.py",  # to name the type; config.py calls it
    "data/prompts.py": "rewards/builtin/geneval/",  # prompts that stand beside the reward they are for
    "training/placing.py": "plan/",  # what a run takes is counted by the loop's own rules, and here it decides
    "worlds/pretraining": "run/",  # a training of its own, which is stopped and continued as runs are
}

FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def room(file: str) -> int:
    """The place in ORDER of the package, or the file at the root, that a file belongs to."""
    name = file.split("/")[1].removesuffix(".py")
    if name not in ORDER:
        raise AssertionError(f"src/{file} is in no known package: give {name} a place in ORDER of tests/test_layers.py")
    return ORDER.index(name)


def excepted(file: str, target: str) -> bool:
    """Whether the table lets a file import another one."""
    return any(
        file.startswith(f"dgpo/{importer}") and target.startswith(f"dgpo/{imported}")
        for importer, imported in EXCEPTIONS.items()
    )


def module_file(module: str, base: Path = SOURCE) -> str | None:
    """dgpo.core.flow -> dgpo/core/flow.py; None if there is no such module."""
    path = module.replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py") if (base / file).exists()), None)


def imported_modules(file: str, source: str) -> set[str]:
    """Absolute names of all modules imported anywhere in a file, in functions too; anybody may ask for the version."""
    package = file.split("/")[:-1]
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            members = {f"{base}.{alias.name}" for alias in node.names} - {"dgpo.__version__"}
            below = {member for member in members if module_file(member)}
            modules |= below if below == members else {base, *below}
    return modules


def violations(file: str, source: str) -> list[str]:
    """Imports of a file that go upward."""
    bad = []
    for module in sorted(imported_modules(file, source)):
        if module.split(".")[0] != "dgpo":
            if file.startswith("dgpo/core/") and module.split(".")[0] not in {"torch", *sys.stdlib_module_names}:
                bad.append(f"{file} imports {module}: core knows torch and the standard library only")
            continue
        target = module_file(module)
        if target is None:
            bad.append(f"{file} imports {module}, which does not exist")
        elif room(target) > room(file) and not excepted(file, target):
            bad.append(f"{file} imports {module}, and {ORDER[room(target)]} comes after {ORDER[room(file)]}")
    return bad


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downward(file):
    assert not violations(file, (SOURCE / file).read_text())


def test_all_files_were_found():
    assert {"dgpo/__init__.py", "dgpo/core/flow.py", "dgpo/algorithms/dgpo.py"} <= set(FILES)
    assert {ORDER[room(file)] for file in FILES} == set(ORDER)


@pytest.mark.parametrize(("importer", "imported"), EXCEPTIONS.items())
def test_an_exception_is_needed(importer, imported):
    files = [file for file in FILES if file.startswith(f"dgpo/{importer}")]
    modules = {module for file in files for module in imported_modules(file, (SOURCE / file).read_text())}
    assert any((module_file(module) or "").startswith(f"dgpo/{imported}") for module in modules)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("dgpo/core/flow.py", "import numpy"),
        ("dgpo/core/flow.py", "from dgpo.types import Rollout"),
        ("dgpo/core/flow.py", "from ..types import Rollout"),
        ("dgpo/core/flow.py", "def f():\n    from dgpo import types"),
        ("dgpo/types.py", "from dgpo.algorithms.base import Algorithm"),
        ("dgpo/algorithms/dgpo.py", "from dgpo import train_it"),
        ("dgpo/algorithms/dgpo.py", "import dgpo.models"),
        ("dgpo/algorithms/dgpo.py", "from dgpo.core.nothing import x"),
        ("dgpo/data/prompts.py", "from dgpo.rewards.registry import resolve"),
        ("dgpo/data/groups.py", "from dgpo.rewards.builtin.geneval import prompts"),
        ("dgpo/worlds/shapes/render.py", "from dgpo.run import checkpoint"),
        ("dgpo/run/folder.py", "from dgpo.training.schedule import saves"),
        ("dgpo/training/loop.py", "from dgpo.plan import plan"),
    ],
)
def test_a_wrong_import_is_seen(file, line):
    assert len(violations(file, line)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("dgpo/core/flow.py", "import torch.nn\nimport math\nfrom dgpo.errors import UserError"),
        ("dgpo/algorithms/dgpo.py", "from .base import require\nfrom dgpo.core import seeds"),
        ("dgpo/run/checkpoint.py", "from dgpo import __version__"),
        ("dgpo/commands/train.py", "from dgpo import types"),
        ("dgpo/data/prompts.py", "from dgpo.rewards.builtin.geneval import prompts"),
    ],
)
def test_a_right_import_is_let_through(file, line):
    assert not violations(file, line)


@pytest.mark.parametrize("file", ["dgpo/mystery.py", "dgpo/mystery/core.py"])
def test_an_unknown_file_fails(file):
    with pytest.raises(AssertionError, match="give mystery a place in ORDER"):
        room(file)
