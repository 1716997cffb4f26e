"""`rlsys run`: a recipe on this machine or on the cluster it names."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("run", help="run a recipe, or go on with one that was stopped")
    parser.add_argument("recipe", help="path of a .toml recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, values as TOML")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print placement and batches, and stop"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto goes on where the run folder ends, never refuses a folder that exists, PATH is a checkpoint",
    )
    parser.add_argument("--from", dest="from_stage", metavar="STAGE", help="do this stage and all after it again")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when every stage is done."""
    from rlsys.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        from launch.dry_run import describe
        from rlsys.checkpoint.run_folder import RunFolder

        if arguments.from_stage is not None:
            recipe.stage_number(arguments.from_stage)
        RunFolder.check((Path(recipe.runs) / recipe.name).absolute(), resume=arguments.resume)
        print(describe(recipe))
        return 0
    from launch.recipe import run_recipe

    run_recipe(recipe, resume=arguments.resume, from_stage=arguments.from_stage)
    return 0
