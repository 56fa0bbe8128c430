"""The plan of the house: ten packages, each with its public names, used by these alone.

That imports only go down is held by import-linter (`lint-imports`, in `pyproject.toml`).
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "finetune"
ROOMS = ("cli", "export", "training", "evaluation", "models", "data", "runs", "config", "backbones", "utils")


def imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """(line, module, names) of every `from finetune... import ...` of a file."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    found = (node for node in nodes if isinstance(node, ast.ImportFrom) and node.module)
    return [
        (node.lineno, str(node.module), [alias.name for alias in node.names])
        for node in found
        if str(node.module).split(".")[0] == "finetune"
    ]


def test_a_newcomer_sees_ten_rooms() -> None:
    packages = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert packages == set(ROOMS)
    assert modules == {"__init__", "api"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_all_its_public_names_are_there(room: str) -> None:
    module = importlib.import_module(f"finetune.{room}")
    assert module.__doc__
    assert module.__doc__.strip().endswith(".")
    for name in getattr(module, "__all__", ()):  # nobody imports from cli
        assert getattr(module, name) is not None
        assert not name.startswith("_")


def test_a_room_is_used_by_its_public_names_alone() -> None:
    wrong = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "examples").glob("*.py")]:
        own = path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else ""
        for line, module, names in imports(path):
            room = module.split(".")[1] if "." in module else ""
            if room in ROOMS and room != own and module.count(".") > 1:
                wrong.append(f"{path.relative_to(ROOT)}:{line} reaches into {module}")
            if any(name.startswith("_") for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports a private name from {module}")
    assert not wrong, "\n".join(wrong)


def test_tests_import_public_names_from_the_room_and_only_inner_parts_from_its_files() -> None:
    """A test reaches into a room for what it tests alone, or replaces; all else comes from the room's public face."""
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        for line, module, names in imports(path):
            if module.count(".") > 1:
                room = ".".join(module.split(".")[:2])
                public = sorted({*names} & {*getattr(importlib.import_module(room), "__all__", ())})
                wrong += [f"{path.relative_to(ROOT)}:{line}: from {room} import {name}" for name in public]
            if any(name.startswith("_") for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports a private name from {module}")
    assert not wrong, "\n".join(wrong)


def test_every_public_name_is_used_outside_its_room() -> None:
    """What nobody outside uses is not public, but for types that public functions return and what documents show."""
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for folder in ("finetune", "tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for _, module, names in imports(path):
                parts = module.split(".")
                if len(parts) > 1 and parts[1] in used:
                    used[parts[1]] |= set(names)
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    shown = "".join(page.read_text("utf-8") for page in pages)
    idle = []
    for room in ROOMS:
        module = importlib.import_module(f"finetune.{room}")
        for name in getattr(module, "__all__", ()):
            if name not in used[room] and name not in shown and not isinstance(getattr(module, name), type):
                idle.append(f"finetune.{room}.{name}")
    assert not idle


def test_importing_the_package_is_light() -> None:
    """`import finetune` and a room's public names start neither TensorFlow nor anything else that is heavy."""
    code = (
        "import sys, finetune, " + ", ".join(f"finetune.{room}" for room in ROOMS) + "\n"
        "from finetune.config import load_config\nfrom finetune.data import open_dataset\n"
        "from finetune.models import load_classifier\nfrom finetune.runs import open_run\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'optuna', 'fastapi'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
