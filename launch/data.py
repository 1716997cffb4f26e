"""`rlsys data`: rows with their loss mask, mixtures as one file, evaluation prompts in training data."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import decontaminate, synthesize

if TYPE_CHECKING:
    from rlsys.recipe.data import DataSettings


def add_parser(subparsers: Any) -> None:
    """Adds the command and its subcommands."""
    parser = subparsers.add_parser("data", help="show, mix, decontaminate and synthesise data")
    commands = parser.add_subparsers(dest="data_command", metavar="SUBCOMMAND", required=True)
    _add_show(commands)
    _add_mix(commands)
    decontaminate.add_parser(commands)
    synthesize.add_parsers(commands)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0; 1 where the subcommand says so."""
    commands = {
        "show": _show,
        "mix": _mix,
        "decontaminate": decontaminate.run,
        "personas": synthesize.run_personas,
        "self-instruct": synthesize.run_self_instruct,
    }
    return commands[arguments.data_command](arguments)


def _add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="print rows as the model sees them, learned tokens in colour",
        description="Prints rows through a tokenizer's chat template. Learned tokens are green (or between [[ and ]] "
        "without colour), special tokens are red.",
    )
    parser.add_argument("source", help="a file, folder, glob, or hf:owner/name")
    parser.add_argument("--tokenizer", required=True, help="a folder with the tokenizer, or its name on the hub")
    parser.add_argument(
        "--template", choices=("own", "tulu", "chatml", "llama3"), help="absent: the tokenizer's, or tulu"
    )
    parser.add_argument("--markers", choices=("refuse", "escape"), default="refuse", help="rule for markers in content")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="rows to pass over first")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="rows to print; default 1")
    parser.add_argument("--ids", action="store_true", help="also print every token with its id and weight")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")


def _add_mix(commands: Any) -> None:
    parser = commands.add_parser(
        "mix",
        help="write the mixture of a recipe's stage as one file, with its data card",
        description="Writes FOLDER/mixture.jsonl, data_card.json and data_card.md: the same bytes for the same seed, "
        "whatever --readers is. Run again after a kill, it goes on where it was.",
    )
    parser.add_argument("recipe", type=Path, help="a recipe, or a file that holds its data section alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--stage", help="which stage's data; needed if several have some")
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER", help="where to")
    parser.add_argument("--readers", type=int, default=1, metavar="N", help="processes that read; default 1")


def _show(arguments: argparse.Namespace) -> int:
    from itertools import islice

    from rlsys.data.chat import ChatTokenizer
    from rlsys.data.prepare import load_tokenizer
    from rlsys.data.reader import read_rows
    from rlsys.data.show import shown_row
    from rlsys.recipe.data import TemplatingSettings

    settings = TemplatingSettings(template=arguments.template, markers=arguments.markers)
    chat = ChatTokenizer(load_tokenizer(arguments.tokenizer), settings)
    colour = arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty())
    rows = read_rows(arguments.source)
    for row in islice(rows, arguments.skip, arguments.skip + arguments.rows):
        print(shown_row(row, chat, colour=colour, with_ids=arguments.ids))
    return 0


def _mix(arguments: argparse.Namespace) -> int:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from rlsys.data.mixture import write_mixture

    settings = _settings(arguments)
    if arguments.readers > 1:
        with ProcessPoolExecutor(arguments.readers, mp_context=get_context("spawn")) as pool:
            card = write_mixture(settings, arguments.write, num_readers=arguments.readers, run=pool.map)
    else:
        card = write_mixture(settings, arguments.write)
    for source in card["sources"]:
        wrong, removed = source["wrong_rows"]["total"], sum({**source["filtered"], **source["duplicates"]}.values())
        print(
            f"{source['name']}: {source['taken']:,} of {source['eligible']:,} rows ({', '.join(source['marks'])}); "
            f"{source['records']:,} read, {wrong:,} wrong, {removed:,} filtered"
        )
    print(f"{card['rows']:,} rows in {arguments.write / 'mixture.jsonl'}")
    return 0


def _settings(arguments: argparse.Namespace) -> "DataSettings":
    """The data section of the stage that is meant, or of a file that is nothing else.

    Raises:
        RecipeError: no such stage, none that mixes sources, or several.
    """
    import tomllib

    from launch.synthesize import read_settings
    from rlsys.errors import RecipeError
    from rlsys.recipe.data import DataSettings
    from rlsys.recipe.load import load_recipe

    if arguments.recipe.is_file():
        tree = tomllib.loads(arguments.recipe.read_text())
        if "source" in tree:
            return read_settings(arguments.recipe, DataSettings)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    found = {
        f"{stage.label}.{key}": value
        for stage in recipe.stage
        for key, value in stage
        if isinstance(value, DataSettings) and value.source
    }
    chosen = [key for key in found if arguments.stage is None or key.split(".")[0] == arguments.stage]
    if len(chosen) != 1:
        raise RecipeError("which data is meant?", value=chosen, fix=f"name a stage with --stage: {', '.join(found)}")
    return found[chosen[0]]
