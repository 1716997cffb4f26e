"""How fast messages become token ids and loss weights, against the template followed by a batch encoding.

    python bench/templating.py [--data ../shared/data] [--repeat 5]

Baseline: `tokenizer(tokenizer.apply_chat_template(batch, tokenize=False), add_special_tokens=False)`, which finds no
mask and checks nothing. Ours: `ChatTokenizer.encode_conversations`, the same ids with weights and marker checks. Both
get the same batches of 512 conversations on one thread, in turn; CPU seconds, the best of the repeats.
"""

import argparse
import gzip
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlsys.data.chat import ChatTokenizer
from rlsys.data.drops import RowRefused
from rlsys.data.reader import read_rows
from rlsys.recipe.data import TemplatingSettings

BATCH = 512
SETS = ("chat/*.jsonl.gz", "gsm8k/train.jsonl.gz", "math/math_train.parquet")


def tokenizers(folder: Path) -> dict[str, PreTrainedTokenizerBase]:
    """Those of the data folder, by name."""
    with gzip.open(folder / "olmo2_dolma2.json.gz", "rt") as file:
        text = file.read()
    olmo2 = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token="<|endoftext|>")
    return {
        "minimind (6.4k, own template)": AutoTokenizer.from_pretrained(folder / "minimind"),
        "OLMo 2 (100k, tulu)": olmo2,
    }


def best_seconds(functions: Sequence[Callable[[], object]], repeat: int) -> list[float]:
    """The shortest of several runs of each function, in turn, in CPU seconds of this one thread."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeat):
        for function, taken in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    print("| tokenizer | set | rows | tokens | baseline tokens/s | rlsys tokens/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, tokenizer in tokenizers(arguments.data / "tokenizers").items():
        chat = ChatTokenizer(tokenizer, TemplatingSettings())
        for pattern in SETS:
            rows = [row for row in read_rows(arguments.data / pattern) if row.kind == "conversation"]
            conversations = [[dict(message) for message in row.messages] for row in rows]
            accepted = [
                conversation
                for conversation, result in zip(conversations, chat.encode_conversations(conversations), strict=True)
                if not isinstance(result, RowRefused)
            ]
            batches = [accepted[start : start + BATCH] for start in range(0, len(accepted), BATCH)]
            compare(name, pattern, batches, tokenizer, chat, arguments.repeat)


def compare(
    name: str,
    pattern: str,
    batches: list[list[list[dict]]],
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatTokenizer,
    repeat: int,
) -> None:
    """Prints a line of the table."""

    def baseline() -> int:
        texts: list[Any] = [tokenizer.apply_chat_template(batch, tokenize=False) for batch in batches]
        return sum(len(ids) for text in texts for ids in tokenizer(text, add_special_tokens=False)["input_ids"])

    def ours() -> int:
        rows: list[Any] = [row for batch in batches for row in chat.encode_conversations(batch)]
        return sum(len(row.token_ids) for row in rows)

    tokens = baseline()
    assert tokens == ours()
    theirs_s, ours_s = best_seconds((baseline, ours), repeat)
    rows = sum(map(len, batches))
    print(
        f"| {name} | {pattern} | {rows:,} | {tokens:,} | {tokens / theirs_s:,.0f} | {tokens / ours_s:,.0f} "
        f"| {theirs_s / ours_s:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
