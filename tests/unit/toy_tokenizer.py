"""A byte-level BPE of 400 entries, made in a second, as any user may make one."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "What is the sum of two numbers? The answer is the sum of the numbers.",
    "Write a poem about the sea in four lines, and end with a question.",
    "user assistant system <|user|> <|assistant|> answer: 1 2 3 4 5 6 7 8 9 0",
]


def toy_tokenizer(*added: str) -> PreTrainedTokenizerFast:
    """With `</s>`, `<pad>` and the ChatML and Llama 3 markers as special tokens, and `added` as plain added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    if added:
        fast.add_tokens(list(added))
    return fast
