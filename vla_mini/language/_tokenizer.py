"""What the language variants share: instructions -> token ids and masks, `b l`, by a tokenizer of the tokenizers library."""

import torch
from jaxtyping import Bool, Int64
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"
UNKNOWNS = {UNKNOWN, "<unk>"}  # as BERT and as T5 and RoBERTa write it
FILE = "tokenizer.json"  # in a saved policy


def train_tokenizer(tasks: tuple[str, ...]) -> Tokenizer:
    """One token for each word of `tasks`, after a start token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(tasks, trainers.WordLevelTrainer(special_tokens=[PAD, UNKNOWN, START], show_progress=False))
    begin_with(tokenizer, START)
    return tokenizer


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let every instruction begin with `token`, so that even an empty one has something to attend to."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def pad_and_cut(tokenizer: Tokenizer, *, pad: str, max_words: int) -> None:
    """Let a batch of instructions have one length: shorter ones are padded, longer ones than `max_words` cut."""
    tokenizer.enable_truncation(max_words)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)


def tokenize(tokenizer: Tokenizer, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Token ids, padded to the longest instruction, and which of them are real (the start token always is)."""
    encodings = tokenizer.encode_batch(instructions)
    tokens = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
    return tokens, torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)


def unknown_words(tokenizer: Tokenizer, instruction: str) -> list[str]:
    """What the tokenizer has no token for, as it was written; to the encoder all of it is one and the same word."""
    encoding = tokenizer.encode(instruction)
    return [instruction[a:b] for token, (a, b) in zip(encoding.tokens, encoding.offsets, strict=True) if token in UNKNOWNS]
