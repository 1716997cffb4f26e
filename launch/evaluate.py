"""`rlsys evaluate MODEL RECIPE`: a model folder on the recipe's held-out sets."""

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("evaluate", help="measure a model folder on a recipe's held-out sets")
    parser.add_argument("model", help="a Hugging Face folder, or hf:owner/name")
    parser.add_argument("recipe", help="path of a .toml recipe with an [evaluation] section")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, values as TOML")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of accuracies; exit status 0 when every set was evaluated."""
    from launch.recipe import evaluate_model
    from rlsys.recipe.load import load_recipe

    evaluate_model(load_recipe(arguments.recipe, arguments.overrides), arguments.model)
    return 0
