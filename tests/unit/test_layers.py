"""launch -> actors -> rlsys: imports never go the other way, and the library never imports Ray."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "rlsys": {"ray", "actors", "launch"},
    "actors": {"launch"},
    "rlsys/recipe": {"torch", "ray", "vllm", "transformers", "deepspeed"},
    "rlsys/algorithms": {"ray", "vllm", "transformers", "deepspeed"},
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {str(path): found for path in files if (found := imported_packages(path) & FORBIDDEN[folder])}
    assert wrong == {}
