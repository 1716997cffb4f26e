"""Writes requirements/{cpu,test}.txt from the environment it runs in: what pyproject.toml needs, what only tests need.

Run it as `make lock` after changing a dependency. The lists are installed with `--no-deps`, torch first (install.sh).
`python requirements/lock.py gpu` writes gpu.txt: what pip resolves for a GPU machine, without installing it.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# The text path does not import them, and the registry has only CUDA builds, which break every import on a CPU machine.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "torch", "rlsys", "pip"}
# lm_eval wants it for tasks other than IFEval; transformers imports it wherever it is: 2 s of CPU for each process.
LEFT_OUT |= {"scikit-learn"}


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


def lock_gpu(project: dict) -> None:
    """Asks pip for the closure with the GPU engine; it reads the packages' metadata and installs nothing.

    Wheels that this machine's pip is configured to find beside the index are left out of it: a CPU build of torch has
    none of the requirements on CUDA's libraries.
    """
    # vllm's bound on setuptools holds for Python 3.12 alone; the list is for both.
    roots = [*project["dependencies"], *project["optional-dependencies"]["gpu"], "setuptools<81"]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run(
            [*command, "--report", report.name, *roots],
            check=True,
            timeout=3600,
            env=environment | {"PIP_CONFIG_FILE": os.devnull},
        )
        chosen = json.load(report)["install"]
    versions = {canonicalize_name(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in chosen}
    if "+" in versions["torch"] or not any(name.startswith("nvidia-nccl") for name in versions):
        sys.exit(f"torch {versions['torch']} is no CUDA build: point pip at an index that has one")
    write("gpu.txt", versions)


def write(file: str, versions: dict[str, str]) -> None:
    """One pinned package a line; without torch's local version, which names a build."""
    lines = sorted(f"{canonicalize_name(name)}=={version.split('+')[0]}" for name, version in versions.items())
    (HERE / file).write_text("# Written by `make lock`.\n" + "\n".join(lines) + "\n")
    print(f"{file}: {len(lines)} packages")


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    if sys.argv[1:] == ["gpu"]:
        lock_gpu(project)
        return
    runtime = closure(project["dependencies"] + project["optional-dependencies"]["cpu"]) | {"setuptools"}
    tests = closure(project["optional-dependencies"]["test"]) - runtime
    versions = {canonicalize_name(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
    write("cpu.txt", {name: versions[name] for name in runtime})
    write("test.txt", {name: versions[name] for name in tests})


if __name__ == "__main__":
    main()
