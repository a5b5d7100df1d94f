"""A word embedding: instruction -> one learned vector for each word, `b l width`. Owns a word-level tokenizer."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"


class TableLanguage(nn.Module):
    """A table of word vectors. Words that training never met share one vector, [UNK].

    - width: the size of a word vector
    - max_words: longer instructions are cut there
    - tasks: the instructions to learn the vocabulary from, in training; or
    - folder: where `save_tokenizer` left it, in a saved policy
    """

    def __init__(self, *, width: int = 64, max_words: int = 32, tasks: tuple[str, ...] = (), folder: str | Path | None = None):
        super().__init__()
        self.width, self.max_words = width, max_words
        self.tokenizer = _train_tokenizer(tasks) if folder is None else Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.enable_truncation(max_words)
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id(PAD), pad_token=PAD)
        self.table = nn.Embedding(self.tokenizer.get_vocab_size(), width)
        nn.init.normal_(self.table.weight, std=0.5)

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Token ids, padded to the longest instruction, and which of them are real (the start token always is)."""
        encodings = self.tokenizer.encode_batch(instructions)
        tokens = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        return tokens, torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)

    def words(self, instruction: str) -> list[str]:
        """The tokens of one instruction as text, the start token included."""
        return self.tokenizer.encode(instruction).tokens

    def save_tokenizer(self, folder: str | Path) -> None:
        self.tokenizer.save(f"{folder}/tokenizer.json")

    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.table(tokens) * mask[..., None]


def _train_tokenizer(tasks: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(tasks, trainers.WordLevelTrainer(special_tokens=[PAD, UNKNOWN, START], show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return tokenizer
