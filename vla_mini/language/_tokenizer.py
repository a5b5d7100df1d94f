"""What the language variants share: training, saving and reading tokenizers of the tokenizers library."""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from vla_mini.utils.files import require_file

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"
FILE = "tokenizer.json"  # in a saved policy


def train_tokenizer(instructions: tuple[str, ...]) -> Tokenizer:
    """One token for each word of `instructions`, after a start token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=[PAD, UNKNOWN, START], show_progress=False)
    tokenizer.train_from_iterator(instructions, trainer)
    begin_with(tokenizer, START)
    return tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a saved policy."""
    return Tokenizer.from_file(str(require_file(folder / FILE)))


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let every instruction begin with `token`, so that even an empty one has something to attend to."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def pad_and_truncate(tokenizer: Tokenizer, *, pad: str, max_words: int) -> None:
    """Let a batch of instructions have one length: shorter ones are padded, longer ones than `max_words` are cut."""
    tokenizer.enable_truncation(max_words)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
