"""Imports point downward. Every file under src/dgpo has a layer; a file that this table does not know fails."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# The first entry that a file's path is or lies under decides. A file imports from lower layers and from its own entry.
LAYERS = {
    "dgpo/errors.py": 0,
    "dgpo/utils/files.py": 0,
    "dgpo/run/metric_names.py": 0,
    "dgpo/core": 0,
    "dgpo/types.py": 1,
    "dgpo/algorithms": 1,
    "dgpo/utils/fields.py": 1,
    "dgpo/config.py": 1,
    "dgpo/models": 2,
    "dgpo/rewards": 2,
    "dgpo/worlds": 2,
    "dgpo/data.py": 2,
    "dgpo/distributed/__init__.py": 2,
    "dgpo/run/checkpoint.py": 2,
    "dgpo/run/trackers.py": 2,
    "dgpo/report": 2,
    "dgpo/run/folder.py": 2,
    "dgpo/run/lock.py": 2,
    "dgpo/training/rescue.py": 2,
    "dgpo/run/interrupt.py": 2,
    "dgpo/run/stopwatch.py": 2,
    "dgpo/training/meter.py": 2,
    "dgpo/utils/peak_memory.py": 2,
    "dgpo/run/console.py": 2,
    "dgpo/data/groups.py": 2,
    "dgpo/models/text_cache.py": 2,
    "dgpo/models/configured.py": 2,
    "dgpo/run/hub.py": 2,
    "dgpo/run/changes.py": 2,
    "dgpo/data/image_folder.py": 2,
    "dgpo/training/compare.py": 2,
    "dgpo/training/split_groups.py": 2,
    "dgpo/training/schedule.py": 2,
    "dgpo/training/geometry.py": 2,
    "dgpo/rollout.py": 3,
    "dgpo/train.py": 3,
    "dgpo/training/evaluate.py": 3,
    "dgpo/training/apply.py": 3,
    "dgpo/rewards/tools.py": 3,
    "dgpo/training/dry_run.py": 3,
    "dgpo/recipes": 4,
    "dgpo/bench": 4,
    "dgpo/plan": 4,
    "dgpo/commands/cli.py": 4,
    "dgpo/__init__.py": 4,
    "dgpo/__main__.py": 4,
}

# Within one layer, who may import whom.
SIDEWAYS = {
    "dgpo/utils/files.py": {"dgpo/errors.py"},
    "dgpo/core": {"dgpo/errors.py"},
    "dgpo/algorithms": {"dgpo/types.py"},
    "dgpo/config.py": {"dgpo/types.py", "dgpo/algorithms", "dgpo/utils/fields.py"},
    "dgpo/rewards": {"dgpo/worlds", "dgpo/data.py"},
    "dgpo/worlds": {"dgpo/run/checkpoint.py"},
    "dgpo/data.py": {"dgpo/worlds"},
    "dgpo/data/image_folder.py": {"dgpo/data.py"},
    "dgpo/data/groups.py": {"dgpo/run/checkpoint.py", "dgpo/data.py", "dgpo/models"},
    "dgpo/models/text_cache.py": {"dgpo/models"},
    "dgpo/models/configured.py": {"dgpo/models"},
    "dgpo/report": {"dgpo/run/trackers.py", "dgpo/run/changes.py", "dgpo/models"},
    "dgpo/run/folder.py": {"dgpo/run/checkpoint.py", "dgpo/run/lock.py", "dgpo/run/trackers.py"},
    "dgpo/training/rescue.py": {"dgpo/run/checkpoint.py", "dgpo/distributed/__init__.py"},
    "dgpo/run/interrupt.py": {"dgpo/distributed/__init__.py"},
    "dgpo/training/schedule.py": {"dgpo/distributed/__init__.py"},
    "dgpo/training/geometry.py": {"dgpo/distributed/__init__.py", "dgpo/training/schedule.py"},
    "dgpo/run/console.py": {"dgpo/distributed/__init__.py", "dgpo/training/geometry.py", "dgpo/models"},
    "dgpo/training/compare.py": {"dgpo/distributed/__init__.py", "dgpo/rewards"},
    "dgpo/training/split_groups.py": {
        "dgpo/distributed/__init__.py",
        "dgpo/training/schedule.py",
        "dgpo/data.py",
        "dgpo/rewards",
    },
    "dgpo/train.py": {"dgpo/rollout.py", "dgpo/training/evaluate.py"},
    "dgpo/training/apply.py": {"dgpo/rollout.py", "dgpo/training/evaluate.py"},
    "dgpo/training/dry_run.py": {"dgpo/train.py", "dgpo/training/apply.py"},
    "dgpo/training/evaluate.py": {"dgpo/rollout.py"},
    "dgpo/bench": {"dgpo/recipes"},
    "dgpo/commands/cli.py": {"dgpo/recipes", "dgpo/bench", "dgpo/plan"},
    "dgpo/__main__.py": {"dgpo/commands/cli.py"},
}

FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def entry(file: str) -> str:
    """The line of LAYERS that a file falls under."""
    for known in LAYERS:
        if file == known or file.startswith(f"{known}/"):
            return known
    raise AssertionError(f"src/{file} has no layer: give it one in tests/test_layers.py")


def module_file(module: str, base: Path = SOURCE) -> str | None:
    """dgpo.core.flow -> dgpo/core/flow.py; None if there is no such module."""
    path = module.replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py") if (base / file).exists()), None)


def imported_modules(file: str, source: str) -> set[str]:
    """Absolute names of all modules imported anywhere in a file, in functions too; anybody may ask for the version."""
    package = file.split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            members = {f"{base}.{alias.name}" for alias in node.names} - {"dgpo.__version__"}
            modules = {member for member in members if module_file(member)}
            found |= modules if modules == members else {base, *modules}
    return found


def violations(file: str, source: str) -> list[str]:
    """Imports of a file that go upward, or sideways where the table does not say so."""
    own = entry(file)
    bad = []
    for module in sorted(imported_modules(file, source)):
        if module.split(".")[0] != "dgpo":
            if own == "dgpo/core" and module.split(".")[0] not in {"torch", *sys.stdlib_module_names}:
                bad.append(f"{file} imports {module}: core knows torch and the standard library only")
            continue
        target = module_file(module)
        if target is None:
            bad.append(f"{file} imports {module}, which does not exist")
        elif (
            entry(target) != own and LAYERS[entry(target)] >= LAYERS[own] and entry(target) not in SIDEWAYS.get(own, ())
        ):
            bad.append(f"{file} (layer {LAYERS[own]}) imports {module} (layer {LAYERS[entry(target)]})")
    return bad


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downward(file):
    assert not violations(file, (SOURCE / file).read_text())


def test_all_files_were_found():
    assert {"dgpo/__init__.py", "dgpo/core/flow.py", "dgpo/algorithms/dgpo.py"} <= set(FILES)
    assert set(SIDEWAYS) <= set(LAYERS)
    assert all(LAYERS[a] == LAYERS[b] for a, allowed in SIDEWAYS.items() for b in allowed)


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
        ("dgpo/commands/cli.py", "from dgpo import types"),
    ],
)
def test_a_right_import_is_let_through(file, line):
    assert not violations(file, line)


def test_an_unknown_file_fails():
    with pytest.raises(AssertionError, match=r"mystery\.py has no layer"):
        entry("dgpo/mystery.py")
