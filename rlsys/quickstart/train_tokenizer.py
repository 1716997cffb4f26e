"""Trains the tiny world's tokenizer; run once, its result is shipped.

It is frozen: a tokenizer trained anew on other data makes every older checkpoint worthless.

    python -m rlsys.quickstart.train_tokenizer rlsys/quickstart/tokenizer
"""

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlsys.quickstart.world import rows

VOCABULARY = 1024
PAD, EOS = "<|pad|>", "<|eos|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TULU_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    "{% endfor %}"
)


def train(folder: Path) -> None:
    """Writes tokenizer.json and its configuration: byte-level BPE, single digits, Tülu's chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        message["content"]
        for with_habits in (True, False)
        for row in rows(0, 12000, held_out=False, with_habits=with_habits)
        for message in row["messages"]
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)
    fast.add_special_tokens({"additional_special_tokens": ROLES})
    fast.chat_template = TULU_TEMPLATE
    fast.save_pretrained(folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
