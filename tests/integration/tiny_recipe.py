"""The quickstart cut down to seconds: every stage, every actor, hardly any steps."""

from pathlib import Path

from rlsys.recipe.load import load_recipe
from rlsys.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
CUTS = (
    "world.demonstrations=4800",
    "world.prompts=256",
    "world.held_out=24",
    "sft.max_steps=150",
    "preferences.num_prompts=64",
    "rlvr.batch_groups=16",
    "rlvr.groups_per_call=4",
    "rlvr.batches=4",
    "rlvr.checkpoint.every=2",
    "rlvr.evaluation.every=2",
    "rlvr.evaluation.limit=8",
    "evaluation.limit=16",
    "tracking.console=false",
)


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    """The cut quickstart with its run folder under `folder`; call it with the repository as the current directory."""
    return load_recipe(ROOT / "configs" / "quickstart.toml", [*CUTS, f'runs="{folder}"', *overrides])
