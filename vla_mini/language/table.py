"""A word embedding: instruction -> one learned vector for each word, `b l width`. Owns a word-level tokenizer."""

from pathlib import Path

from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_mini.language._tokenizer import FILE, PAD, pad_and_cut, tokenize, train_tokenizer, unknown_words


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
        self.tokenizer = train_tokenizer(tasks) if folder is None else Tokenizer.from_file(f"{folder}/{FILE}")
        pad_and_cut(self.tokenizer, pad=PAD, max_words=max_words)
        self.table = nn.Embedding(self.tokenizer.get_vocab_size(), width)
        nn.init.normal_(self.table.weight, std=0.5)

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Token ids, padded to the longest instruction, and which of them are real (the start token always is)."""
        return tokenize(self.tokenizer, instructions)

    def words(self, instruction: str) -> list[str]:
        """The tokens of one instruction as text, the start token included."""
        return self.tokenizer.encode(instruction).tokens

    def unknown_words(self, instruction: str) -> list[str]:
        """The words of one instruction that the vocabulary lacks: they share one vector."""
        return unknown_words(self.tokenizer, instruction)

    def save_tokenizer(self, folder: str | Path) -> None:
        self.tokenizer.save(f"{folder}/{FILE}")

    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.table(tokens) * mask[..., None]
