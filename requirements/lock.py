"""Writes requirements/{cpu,test}.txt from the environment it runs in: what pyproject.toml needs, and what only tests need.

Run it as `make lock` after changing a dependency. The lists are installed with `--no-deps`, torch first (see install.sh).
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# The text path does not import them, and the registry has only CUDA builds, which break every import on a CPU machine.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "torch", "rlsys", "pip"}


def closure(requirements: list[str]) -> set[str]:
    """Names of all installed distributions that the requirements need, markers evaluated for this machine."""
    found: set[str] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, _ = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in LEFT_OUT - {"torch"} or (name in found and extras == {""}):
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((need, ""))
    return found - LEFT_OUT


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    runtime = closure(project["dependencies"] + project["optional-dependencies"]["cpu"]) | {"setuptools"}
    tests = closure(project["optional-dependencies"]["test"]) - runtime
    versions = {canonicalize_name(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
    for file, names in (("cpu.txt", runtime), ("test.txt", tests)):
        lines = [f"{name}=={versions[name]}" for name in sorted(names)]
        (HERE / file).write_text("# Written by `make lock`.\n" + "\n".join(lines) + "\n")
        print(f"{file}: {len(lines)} packages")


if __name__ == "__main__":
    main()
