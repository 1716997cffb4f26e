"""`rlsys data decontaminate`: which evaluation prompts are in the training data, and the data without them."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command to those of `rlsys data`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "decontaminate",
        help="find evaluation prompts in training data, and drop them",
        description="A training row matches an evaluation prompt if over half of the prompt's words lie in 8-grams "
        "that both share; a training set is contaminated if more than 2 % of an evaluation set is matched.",
    )
    source = "files, folders, globs, or hf:owner/name?subset=main&split=test"
    parser.add_argument("--train", nargs="+", required=True, metavar="SET", help=f"training sets: {source}")
    parser.add_argument("--eval", nargs="+", required=True, metavar="SET", help=f"evaluation sets: {source}")
    parser.add_argument("--mode", choices=("ngram", "exact", "char-ngram"), default="ngram", help="what is compared")
    parser.add_argument("--ngram", type=int, help="words (8 unless given) or characters (24) of an n-gram")
    parser.add_argument("--threshold", type=float, default=0.5, help="matching fraction of a prompt; default 0.5")
    parser.add_argument("--max-overlap", type=float, default=0.02, help="contaminated fraction of a set; default 0.02")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the JSON report there")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write what the policy keeps there, as JSON lines")
    parser.add_argument(
        "--policy",
        choices=("drop-rows", "drop-set", "report", "refuse"),
        default="drop-rows",
        help="drop matching rows (default) or contaminated sets, only report, or fail if a set is contaminated",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a line for each pair of sets; exit status 1 if the policy is `refuse` and a set is contaminated.

    Raises:
        DataError: a set cannot be read or the settings make no sense.
    """
    from pydantic import ValidationError

    from rlsys.data.decontamination_files import decontaminate_sources, report_json, write_kept
    from rlsys.data.decontamination_report import require_clean
    from rlsys.errors import DataError
    from rlsys.recipe.decontamination import Decontamination

    if args.write is not None and args.policy == "report":
        raise DataError(
            "policy report drops nothing", value="--write", fix="choose drop-rows or drop-set, or leave it out"
        )
    try:
        settings = Decontamination(
            evals=tuple(args.eval),
            mode=args.mode,
            ngram=args.ngram,
            threshold=args.threshold,
            max_overlap=args.max_overlap,
            policy=args.policy,
        )
    except ValidationError as error:
        raise DataError(
            f"decontamination settings: {error.errors()[0]['msg']}", value=error.errors()[0]["input"]
        ) from error
    report, train, evals = decontaminate_sources(args.train, args.eval, settings)
    document = report_json(report, train, evals)
    for pair in report.pairs:
        verdict = "CONTAMINATED" if pair.contaminated else "clean"
        print(
            f"{pair.train} against {pair.eval}: {len(pair.instances)} of {pair.num_eval_rows} prompts "
            f"({pair.overlap:.2%}) in {len(pair.matching_train_rows)} of {pair.num_train_rows} rows: {verdict}"
        )
    for name, source in train.items():
        if source.drops.total:
            print(f"{name}: {source.drops.total} rows could not be read: {dict(source.drops.by_reason)}")
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = require_clean(report, args.policy)
    if args.write is not None:
        files = write_kept(train, kept, args.write)
        for name, rows in kept.items():
            print(f"kept {rows.num_kept} of {rows.num_rows} rows of {name}: {files.get(name, 'no file')}")
    return 0
