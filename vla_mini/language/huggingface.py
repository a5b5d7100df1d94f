"""A text encoder of the transformers library (BERT, MiniLM, T5, CLIP ...): instruction -> one contextual vector for each token,
"b l width". A frozen encoder computes the vectors of an instruction once and caches them."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import NonNegativeFloat, PositiveInt
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vla_mini.language._tokenizer import FILE, PAD, begin_with, pad_and_truncate, read_tokenizer, train_tokenizer
from vla_mini.parts import FitData, Language, ObservationSpec
from vla_mini.utils import hub
from vla_mini.utils.files import read_json, write_json

CONFIG = "language_model.json"  # in a saved policy
CACHE_SIZE = 16384  # instructions; a full cache is emptied


class HuggingFaceLanguage(Language):
    """Any AutoModel that turns token ids into hidden states.

    - path: a hub id (sentence-transformers/all-MiniLM-L6-v2) or a local folder: pretrained, with its own tokenizer.
      None: untrained, from `config`, with a tokenizer of the words in the training data
    - config: a config of transformers, {"model_type": "bert", "hidden_size": 64, ...}; a pretrained model has its own
    - frozen: whether its weights are not trained; then it also uses no dropout
    - noise: Gaussian noise added to its vectors in training, in units of their root mean square. It makes what follows learn
      a smooth map (Tikhonov regularisation; Bishop 1995), which holds for nearby vectors of unseen words, too
    - max_words: longer instructions are cut
    - trust_remote_code: whether code that comes with the model may be run
    """

    def __init__(
        self,
        spec: ObservationSpec,
        *,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        frozen: bool = True,
        noise: NonNegativeFloat = 0.0,
        max_words: PositiveInt = 32,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        self.frozen, self.noise, self.max_words = frozen, noise, max_words
        self._cache: dict[tuple[int, ...], Tensor] = {}
        self._cached_state: object = None

    def fit(self, data: FitData) -> None:
        path, trust = self.settings["path"], self.settings["trust_remote_code"]
        if path is None:
            tokenizer = train_tokenizer(data.instructions)
            pad_and_truncate(tokenizer, pad=PAD, max_words=self.max_words)
            self._build(*hub.make(self.settings["config"], vocab_size=tokenizer.get_vocab_size()), tokenizer)
        else:
            folder = hub.fetch(path, trust_remote_code=trust)
            model, config = hub.load(folder, part="text", trust_remote_code=trust)
            self._build(model, config, _pretrained_tokenizer(folder, self.max_words))

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / FILE))
        write_json(folder / CONFIG, self.config)

    def load_assets(self, folder: Path) -> None:
        model, config = hub.make_again(read_json(folder / CONFIG), part="text", settings=self.settings)
        self._build(model, config, read_tokenizer(folder))

    @property
    def divisible(self) -> bool:
        """Whether it is trained: else it is called for the instructions that are not in its cache."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        if self.divisible or torch.compiler.is_exporting():
            self._cache.clear()
            vectors = self.encode(tokens, mask)
        else:
            vectors = self._encode_cached(tokens, mask)
        if self.training and self.noise:
            scale = self.noise * vectors.detach().square().mean(dim=-1, keepdim=True).sqrt()  # 0 where padded
            vectors = vectors + scale * torch.randn_like(vectors)
        return vectors

    def _build(self, model: nn.Module, config: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.model, self.config, self.tokenizer = model, config, tokenizer
        for name, needed in (("vocab_size", tokenizer.get_vocab_size()), ("max_position_embeddings", self.max_words)):
            if (config.get(name) or needed) < needed:
                raise ValueError(f"config.{name}={config[name]} is too small: {needed} are needed")
        with hub.transformers_errors(f"model_type={config['model_type']} cannot encode text"):
            vectors = self.encode(*self.tokenize(["", "a longer one"]))
        self.width = vectors.shape[-1]
        hub.freeze_unused(model, vectors)
        if self.frozen:
            model.requires_grad_(False)
        self.settings = hub.saved_settings(self.settings, config)

    def encode(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Without the cache of a frozen model."""
        return self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state * mask[..., None]

    @torch.compiler.disable  # looks at values
    def _encode_cached(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """`encode` of a frozen model, from the cache where the instruction is in it, however it is padded."""
        state = _state_of(self.model)
        if state != self._cached_state or len(self._cache) > CACHE_SIZE:
            self._cache.clear()
            self._cached_state = state
        rows = [_without_padding(row) for row in torch.where(mask, tokens, -1).tolist()]
        for row in set(rows) - self._cache.keys():
            self._cache[row] = self._encode_one(row, tokens.device)
        vectors = pad_sequence([self._cache[row] for row in rows], batch_first=True)
        return F.pad(vectors, (0, 0, 0, tokens.shape[1] - vectors.shape[1]))

    def _encode_one(self, row: tuple[int, ...], device: torch.device) -> Float[Tensor, "l d"]:
        """One instruction without padding, dropout, autocast or a graph: bit-equal in training and acting, in any batch."""
        self.model.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            tokens = torch.tensor([row], device=device)
            return self.encode(tokens.clamp(min=0), tokens >= 0)[0]


def _without_padding(row: list[int]) -> tuple[int, ...]:
    """Without the -1 at its end, which stands for padding."""
    return tuple(row[: max((i for i, token in enumerate(row) if token >= 0), default=0) + 1])


def _state_of(model: nn.Module) -> object:
    """Something that changes whenever the model's weights are overwritten, replaced, converted or moved."""
    weights = list(model.parameters())
    return sum(w._version for w in weights), sum(w.data_ptr() for w in weights), weights[0].dtype, weights[0].device


def _pretrained_tokenizer(folder: Path, max_words: int) -> Tokenizer:
    """The tokenizer in a model's folder, as one that needs nothing but its own file; an empty instruction gets one token."""
    from transformers import AutoTokenizer

    with hub.transformers_errors(f"path={folder} holds no fast tokenizer"):
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer = found.backend_tokenizer
    if not tokenizer.get_vocab().keys() - set(found.all_special_tokens):  # transformers makes one up
        raise ValueError(f"path={folder} holds no tokenizer: no tokenizer.json, and no vocabulary to make one from")
    special = [token for token in (found.bos_token, found.cls_token, found.eos_token, found.pad_token) if token]
    if not tokenizer.encode("").ids:
        if not special:
            raise ValueError(f"path={folder}: its tokenizer has no special token to begin an instruction with")
        begin_with(tokenizer, special[0])
    pad_and_truncate(tokenizer, pad=found.pad_token or special[-1], max_words=max_words)
    return tokenizer
