"""A text encoder of the transformers library (BERT, MiniLM, T5, CLIP ...): instruction -> one vector for each token that knows
its neighbours, `b l width`. What a frozen one says of an instruction is computed once and remembered."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vla_mini import hub
from vla_mini.language._tokenizer import FILE, PAD, begin_with, pad_and_cut, tokenize, train_tokenizer, unknown_words

MOST_REMEMBERED = 16384  # instructions; then all are forgotten


class HuggingFaceLanguage(nn.Module):
    """Any AutoModel that turns token ids into hidden states.

    - path: a hub id (sentence-transformers/all-MiniLM-L6-v2) or a local folder: pretrained, with its own tokenizer.
      None: untrained, as `config` says, with a tokenizer of the words in `tasks`
    - config: what transformers calls a config, {"model_type": "bert", "hidden_size": 64, ...}; a pretrained model has its own
    - frozen: whether it stays as it is; then it also knows no dropout
    - noise: Gaussian, added to its vectors in training, in units of their root mean square. What follows then learns from a
      few words what holds in their neighbourhood, too, where words never heard lie: to train with noise is to ask for the
      smoothest map that fits (Tikhonov regularisation; Bishop 1995)
    - max_words: longer instructions are cut there
    - trust_remote_code: whether code that comes with the model may be run
    - tasks: the instructions to learn a vocabulary from, in training; or
    - folder: where `save_tokenizer` left the tokenizer, in a saved policy: it goes before that of `path`
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        frozen: bool = True,
        noise: float = 0.0,
        max_words: int = 32,
        trust_remote_code: bool = False,
        tasks: tuple[str, ...] = (),
        folder: str | Path | None = None,
    ):
        super().__init__()
        self.frozen, self.noise, self.max_words, self.trust_remote_code = frozen, noise, max_words, trust_remote_code
        if path is None and config is None:
            raise ValueError("language=huggingface needs a path (a hub id or a folder) or a config")
        if path is not None:
            source = hub.fetch(path, trust_remote_code=trust_remote_code)
            self.model, config = hub.load(source, part="text", trust_remote_code=trust_remote_code)
        if folder is not None:
            self.tokenizer = Tokenizer.from_file(f"{folder}/{FILE}")
        elif path is not None:
            self.tokenizer = _pretrained_tokenizer(source, max_words)
        else:
            self.tokenizer = train_tokenizer(tasks)
            pad_and_cut(self.tokenizer, pad=PAD, max_words=max_words)
        if path is None:
            self.model, config = hub.make({"vocab_size": self.tokenizer.get_vocab_size()} | config)
        _check_sizes(config, num_tokens=self.tokenizer.get_vocab_size(), max_words=max_words)
        # What a saved policy is made from again: no path, unless to code that is not ours.
        self.config, self.path = config, path if "auto_map" in config else None
        self._remembered: dict[tuple[int, ...], Tensor] = {}
        self._remembered_of: object = None
        with hub.explained(f"model_type={config['model_type']} cannot read"):
            vectors = self._encode(*self.tokenize(["", "a longer one"]))
        self.width = vectors.shape[-1]
        hub.freeze_unused(self.model, vectors)
        if frozen:
            self.model.requires_grad_(False)

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Token ids, padded to the longest instruction, and which of them are real (a special token always is)."""
        return tokenize(self.tokenizer, instructions)

    def words(self, instruction: str) -> list[str]:
        """The tokens of one instruction as text, special ones included."""
        return self.tokenizer.encode(instruction).tokens

    def unknown_words(self, instruction: str) -> list[str]:
        """The words of one instruction that the vocabulary lacks: they share one vector."""
        return unknown_words(self.tokenizer, instruction)

    def save_tokenizer(self, folder: str | Path) -> None:
        self.tokenizer.save(f"{folder}/{FILE}")

    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            self._remembered.clear()
            vectors = self._encode(tokens, mask)
        else:
            vectors = self._recall(tokens, mask)
        if self.training and self.noise:
            scale = self.noise * vectors.detach().square().mean(dim=-1, keepdim=True).sqrt()  # 0 where there is no word
            vectors = vectors + scale * torch.randn_like(vectors)
        return vectors

    def _encode(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state * mask[..., None]

    @torch.compiler.disable  # looks at values
    def _recall(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """`_encode` of a frozen model, from memory where the instruction has come by before, however it was padded."""
        state = _state_of(self.model)
        if state != self._remembered_of or len(self._remembered) > MOST_REMEMBERED:
            self._remembered.clear()
            self._remembered_of = state
        rows = [_trimmed(row) for row in torch.where(mask, tokens, -1).tolist()]
        for row in set(rows) - self._remembered.keys():
            self._remembered[row] = self._encode_one(row, tokens.device)
        vectors = pad_sequence([self._remembered[row] for row in rows], batch_first=True)
        return F.pad(vectors, (0, 0, 0, tokens.shape[1] - vectors.shape[1]))

    def _encode_one(self, row: tuple[int, ...], device: torch.device) -> Float[Tensor, "l d"]:
        """Alone, without padding, dropout, autocast or a graph: the same to the bit in training and acting, in any batch."""
        self.model.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            tokens = torch.tensor([row], device=device)
            return self._encode(tokens.clamp(min=0), tokens >= 0)[0]


def _check_sizes(config: dict[str, Any], *, num_tokens: int, max_words: int) -> None:
    for name, needed in (("vocab_size", num_tokens), ("max_position_embeddings", max_words)):
        if (config.get(name) or needed) < needed:
            raise ValueError(f"language.config.{name}={config[name]} is too small: {needed} are needed")


def _trimmed(row: list[int]) -> tuple[int, ...]:
    """Without the -1 at its end, which stands for padding."""
    return tuple(row[: max((i for i, token in enumerate(row) if token >= 0), default=0) + 1])


def _state_of(model: nn.Module) -> object:
    """Something that changes whenever the model's weights are overwritten, replaced, converted or moved."""
    weights = list(model.parameters())
    return sum(w._version for w in weights), sum(w.data_ptr() for w in weights), weights[0].dtype, weights[0].device


def _pretrained_tokenizer(folder: Path, max_words: int) -> Tokenizer:
    """The tokenizer in a model's folder, as one that needs nothing but its own file, and that never says nothing."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer = found.backend_tokenizer
    except Exception as error:  # whatever the library raises
        raise ValueError(f"path={folder} holds no fast tokenizer: {' '.join(str(error).split())[:200]}") from error
    if not tokenizer.get_vocab().keys() - set(found.all_special_tokens):  # transformers makes one up
        raise ValueError(f"path={folder} holds no tokenizer: no tokenizer.json, and no vocabulary to make one from")
    special = [token for token in (found.bos_token, found.cls_token, found.eos_token, found.pad_token) if token]
    if not tokenizer.encode("").ids:
        if not special:
            raise ValueError(f"path={folder}: its tokenizer has no special token to begin an instruction with")
        begin_with(tokenizer, special[0])
    pad_and_cut(tokenizer, pad=found.pad_token or special[-1], max_words=max_words)
    return tokenizer
