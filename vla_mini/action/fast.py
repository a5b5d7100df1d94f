"""Actions as tokens: context -> tokens that encode a chunk of actions, predicted one by one; trained by cross-entropy.

    actions  b t a ── cosine transform over time ── x scale, rounded ── b (t a) ── byte-pair encoding ── tokens  b l

The lowest frequencies of all dimensions come first, and cost few tokens, since most other coefficients are 0 and frequent
sequences of coefficients become one token: FAST, Pertsch et al. 2025 (arXiv 2501.09747). The tokenizer is trained on the
training data's chunks, and saved with the policy.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from pydantic import PositiveInt
from tokenizers import Tokenizer, models, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.parts import ActionHead, FitData, HeadSpec
from vla_mini.types import Context
from vla_mini.utils.files import require_file
from vla_mini.utils.layers import Block, at_least_fp32

FILE = "action_tokenizer.json"  # in a saved policy
START = "[START]"  # comes before the first token and fills up shorter chunks; it encodes no coefficient
FIRST_SYMBOL = 0x4E00  # each coefficient is a symbol, from this character on: 20,000 that no Unicode normalisation changes


class FastHead(ActionHead):
    """A causal transformer over action tokens, all of which attend to the context's tokens, too.

    - hidden, depth, num_heads: of the transformer
    - scale: coefficients are rounded to its inverse
    - vocab_size: of the tokenizer, at most; each single coefficient is one of its tokens
    """

    exportable = False

    def __init__(
        self,
        spec: HeadSpec,
        *,
        hidden: PositiveInt = 96,
        depth: Annotated[int, Ge(1)] = 2,
        num_heads: PositiveInt = 4,
        scale: Annotated[float, Gt(0)] = 5.0,
        vocab_size: PositiveInt = 512,
    ):
        super().__init__()
        self.hidden, self.depth, self.num_heads, self.scale, self.vocab_size = hidden, depth, num_heads, scale, vocab_size
        self.max_coefficient = math.ceil(scale * math.sqrt(spec.horizon))  # of actions within [-1, 1]
        self.symbols = [chr(FIRST_SYMBOL + number) for number in range(2 * self.max_coefficient + 1)]
        if (needed := len(self.symbols) + 1) > vocab_size:
            raise ValueError(f"scale={scale:g}, vocab_size={vocab_size}: {needed} are needed for single coefficients alone")

    def fit(self, data: FitData) -> None:
        self._build(self._train_bpe(self._encode(data.action_chunks)))

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / FILE))

    def load_assets(self, folder: Path) -> None:
        self._build(Tokenizer.from_file(str(require_file(folder / FILE))))

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Cross-entropy of the next token, in nats, averaged over the chunk's tokens: the same for each of its actions.

        Past an episode's end its last action is repeated. The loss of actions that are not finite is not finite either."""
        last = (~is_pad).sum(dim=1, keepdim=True) - 1
        repeated = torch.minimum(torch.arange(self.spec.horizon, device=last.device), last)
        tokens = self.tokenize(actions.take_along_dim(repeated[..., None], dim=1))
        logits = rearrange(self._logits(context, tokens).to(actions.dtype), "b l v -> b v l")
        real = self.lengths[tokens] > 0
        nats = F.cross_entropy(logits, tokens, reduction="none") * real
        mean = nats.sum(dim=1) / real.sum(dim=1) + 0 * actions.sum(dim=(1, 2))
        return mean[:, None].expand(-1, self.spec.horizon)

    def predict(self, context: Context, noise: Float[Tensor, "b t a"] | None = None) -> Float[Tensor, "b t a"]:
        """Greedy decoding; then, for each token, the mean of its neighbours by their probabilities, which is differentiable.

        Neighbours are tokens of the same length none of whose coefficients differs by more than one: two modes are never
        averaged."""
        tokens = self._decode(context)
        logits = at_least_fp32(self._logits(context, tokens)).masked_fill(~self.neighbours[tokens], -math.inf)
        probabilities = logits.softmax(dim=-1)
        with torch.autocast(logits.device.type, enabled=False):  # coefficients need more than bf16's three digits
            expected = probabilities @ self.coefficients.to(probabilities.dtype)
            return cosine_transform(self.spec.horizon, like=expected).T @ self._scatter(tokens, expected) / self.scale

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float:
        return math.log(len(self.lengths))

    @torch.compiler.disable  # looks at values
    def tokenize(self, actions: Float[Tensor, "b t a"]) -> Int64[Tensor, "b l"]:
        """The tokens that encode normalised actions; shorter ones are followed by the start token."""
        encodings = self.tokenizer.encode_batch(self._encode(actions))
        longest = max(len(encoding.ids) for encoding in encodings)
        rows = [[*encoding.ids, *[self.start] * (longest - len(encoding.ids))] for encoding in encodings]
        return torch.tensor(rows, device=actions.device)

    def _build(self, tokenizer: Tokenizer) -> None:
        """Embeddings, layers and tables for the tokenizer's vocabulary."""
        vocabulary = tokenizer.get_vocab()
        if missing := {START, *self.symbols} - vocabulary.keys():
            raise ValueError(f"{FILE} of scale={self.scale:g} lacks {len(missing)} of {len(self.symbols) + 1} single tokens")
        self.tokenizer, self.start = tokenizer, vocabulary[START]
        size, offset = self.spec.horizon * self.spec.action_size, FIRST_SYMBOL + self.max_coefficient
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        decoded = [[] if word == START else [ord(symbol) - offset for symbol in word] for word in words]
        # The coefficients that each token encodes, followed by zeros, and their number.
        padded = torch.tensor([[*coefficients, *[0] * size][:size] for coefficients in decoded])
        lengths = torch.tensor([len(coefficients) for coefficients in decoded])
        near = torch.cdist(padded.float(), padded.float(), p=math.inf) <= 1
        self.register_buffer("coefficients", padded, persistent=False)
        self.register_buffer("lengths", lengths, persistent=False)
        self.register_buffer("neighbours", near & (lengths[:, None] == lengths), persistent=False)
        self.input_projection = nn.Linear(self.spec.context_width, self.hidden)
        self.token_embedding = nn.Embedding(len(words), self.hidden)
        self.type_embedding = nn.Parameter(torch.zeros(self.spec.num_tokens, self.hidden))  # tells context tokens apart
        self.positional_embedding = nn.Embedding(size + 1, self.hidden)  # by the number of coefficients before
        self.blocks = nn.ModuleList(Block(width=self.hidden, num_heads=self.num_heads) for _ in range(self.depth))
        self.output_projection = nn.Sequential(nn.LayerNorm(self.hidden), nn.Linear(self.hidden, len(words)))

    @torch.no_grad()
    def _encode(self, actions: Float[Tensor, "b t a"]) -> list[str]:
        """Each chunk's rounded coefficients as symbols, the lowest frequencies first."""
        # On the CPU in float64, which autocast leaves alone: the same symbols wherever and however training computes.
        actions = actions.cpu().double()
        coefficients = (self.scale * cosine_transform(self.spec.horizon, like=actions) @ actions).round()
        coefficients = coefficients.clamp(-self.max_coefficient, self.max_coefficient).nan_to_num().long()
        rows = rearrange(coefficients + self.max_coefficient + FIRST_SYMBOL, "b t a -> b (t a)").tolist()
        return ["".join(map(chr, row)) for row in rows]

    def _train_bpe(self, texts: list[str]) -> Tokenizer:
        """A byte-pair encoding: frequent pairs of symbols become one token, up to the size of the vocabulary."""
        tokenizer = Tokenizer(models.BPE())
        options = {"vocab_size": self.vocab_size, "min_frequency": 2, "show_progress": False}
        trainer = trainers.BpeTrainer(special_tokens=[START], initial_alphabet=self.symbols, **options)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    def _scatter(self, tokens: Int64[Tensor, "b l"], expected: Float[Tensor, "b l n"]) -> Float[Tensor, "b t a"]:
        """Each token's coefficients at their position in the chunk, behind those of the tokens before it."""
        number = torch.arange(expected.shape[-1], device=tokens.device)
        position, real = self._offsets(tokens)[..., None] + number, number < self.lengths[tokens][..., None]
        chunks = expected.new_zeros(len(tokens), len(number) + 1)  # the last column collects padding
        chunks = chunks.scatter_add(1, torch.where(real, position, len(number)).flatten(1), expected.flatten(1))
        return rearrange(chunks[:, :-1], "b (t a) -> b t a", t=self.spec.horizon)

    def _offsets(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b l"]:
        """The number of coefficients before each token."""
        return self.lengths[tokens].cumsum(dim=1) - self.lengths[tokens]

    def _logits(self, context: Context, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """Of each token, from the context and the tokens before it."""
        before = F.pad(tokens[:, :-1], (1, 0), value=self.start)
        embedded = self.token_embedding(before) + self.positional_embedding(self._offsets(tokens))
        x = torch.cat([self.input_projection(context.tokens) + self.type_embedding, embedded], dim=1)
        size, num_context, length = len(x), context.tokens.shape[1], x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        attended = torch.cat([context.mask, context.mask.new_ones(size, length - num_context)], dim=1)
        mask = (causal | (torch.arange(length, device=x.device) < num_context)) & attended[:, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.output_projection(x[:, num_context:])

    @torch.no_grad()
    def _decode(self, context: Context) -> Int64[Tensor, "b l"]:
        """The most probable next token, of those that still fit into the chunk, until all chunks are full."""
        tokens = torch.zeros(len(context.tokens), 0, dtype=torch.int64, device=context.tokens.device)
        while True:
            room = self.spec.horizon * self.spec.action_size - self.lengths[tokens].sum(dim=1, keepdim=True)
            if not room.any():
                return tokens
            logits = self._logits(context, F.pad(tokens, (0, 1)))[:, -1]
            fits = (self.lengths <= room) & ((self.lengths > 0) == (room > 0))
            tokens = torch.cat([tokens, logits.masked_fill(~fits, -math.inf).argmax(dim=1, keepdim=True)], dim=1)


def cosine_transform(size: int, *, like: Tensor) -> Float[Tensor, "f t"]:
    """The orthonormal discrete cosine transform (DCT-II): rows are frequencies, from 0 on."""
    step = torch.arange(size, dtype=like.dtype, device=like.device)
    basis = math.sqrt(2 / size) * torch.cos(math.pi / size * step[:, None] * (step + 0.5))
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])
