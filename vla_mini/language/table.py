"""A word embedding: instruction -> one learned vector for each word, "b l width". Owns a word-level tokenizer."""

from pathlib import Path

from jaxtyping import Bool, Float, Int64
from pydantic import PositiveInt
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_mini.language._tokenizer import FILE, PAD, pad_and_truncate, read_tokenizer, train_tokenizer
from vla_mini.parts import FitData, Language, ObservationSpec


class TableLanguage(Language):
    """A table of word vectors. Words that are not in the training data share one vector, [UNK].

    - width: size of a word vector
    - max_words: longer instructions are cut
    """

    def __init__(self, spec: ObservationSpec, *, width: PositiveInt = 64, max_words: PositiveInt = 32):
        super().__init__()
        self.width, self.max_words = width, max_words

    def fit(self, data: FitData) -> None:
        self._build(train_tokenizer(data.instructions))

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / FILE))

    def load_assets(self, folder: Path) -> None:
        self._build(read_tokenizer(folder))

    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.table(tokens) * mask[..., None]

    def _build(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pad_and_truncate(tokenizer, pad=PAD, max_words=self.max_words)
        self.table = nn.Embedding(tokenizer.get_vocab_size(), self.width)
        nn.init.normal_(self.table.weight, std=0.5)
