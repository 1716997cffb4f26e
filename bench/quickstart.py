"""The quickstart over seeds, with its controls: what RLVR adds, and what it adds when there is nothing to learn.

    python bench/quickstart.py --seeds 0 1 2 [--controls] [--runs runs] [key=value ...]
    python bench/quickstart.py --recipe configs/quickstart-grpo.toml --seeds 0 1 2

For each seed the whole recipe. One that differs from the quickstart in RLVR alone starts from the DPO model of the
quickstart's own run, where there is one: the same for both. With --controls, RLVR once more from the same DPO model
with shuffled rewards, and with learning rate 0. Prints a table and the steps at which the value model's explained
variance first passes 0.2.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONTROLS = {"shuffled rewards": "rlvr.shuffle_rewards=true", "lr 0": "rlvr.learner.lr=0.0"}
QUICKSTART = "configs/quickstart.toml"
ACCURACY = "eval/test/accuracy@T1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=QUICKSTART)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments, rest = parser.parse_known_args()
    arguments.overrides += rest
    rows = []
    for seed in arguments.seeds:
        name = f"{Path(arguments.recipe).stem}-seed{seed}"
        plain = f"{Path(QUICKSTART).stem}-seed{seed}"
        if name != plain and (Path(arguments.runs) / plain / "05-dpo" / "done.json").is_file():
            copy_stages(Path(arguments.runs), plain, name)
        rows.append(measure(name, seed, arguments, label="as it is"))
        print_row(rows[-1])
        for label, override in CONTROLS.items() if arguments.controls else ():
            control = f"{name}-{label.replace(' ', '-')}"
            copy_stages(Path(arguments.runs), name, control)
            rows.append(measure(control, seed, arguments, override, label=label))
            print_row(rows[-1])
    print("\n| seed | RLVR | before, T=1 | after, T=1 | gain | seconds | explained variance > 0.2 at step |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print_row(row)


def measure(name: str, seed: int, arguments: argparse.Namespace, *overrides: str, label: str) -> dict:
    """Runs the recipe and reads what its folder says."""
    settings = [f'runs="{arguments.runs}"', f'name="{name}"', f"seed={seed}", 'tracking.wandb="off"']
    settings += ["tracking.console=false", *arguments.overrides, *overrides]
    command = [sys.executable, "-m", "launch.cli", "run", arguments.recipe, *settings]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=3600)
    folder = Path(arguments.runs) / name
    before = json.loads((folder / "05-dpo" / "done.json").read_text())["evaluation"][ACCURACY]
    after = json.loads((folder / "06-rlvr" / "done.json").read_text())["evaluation"][ACCURACY]
    return {
        "seed": seed,
        "label": label,
        "before": before,
        "after": after,
        "seconds": time.perf_counter() - started,
        "ev_step": first_explained(folder / "metrics.jsonl"),
    }


def first_explained(metrics: Path) -> int | None:
    """The first RLVR step whose explained variance passes 0.2."""
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        if row["stage"] == "rlvr" and (row.get("value/explained_variance") or 0.0) > 0.2:
            return row["step"]
    return None


def copy_stages(runs: Path, source: str, target: str) -> None:
    """The stages before RLVR as a run of their own, so that both start from the same model."""
    shutil.rmtree(runs / target, ignore_errors=True)
    shutil.copytree(
        runs / source, runs / target, ignore=shutil.ignore_patterns("06-rlvr*", "metrics.jsonl", "trace.json", "ray")
    )


def print_row(row: dict) -> None:
    gain = 100 * (row["after"] - row["before"])
    print(
        f"| {row['seed']} | {row['label']} | {100 * row['before']:.1f} | {100 * row['after']:.1f} | {gain:+.1f} | "
        f"{row['seconds']:.0f} | {row['ev_step']} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
