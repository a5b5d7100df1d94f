"""Actions as text: context -> tokens, one after the other, that spell a chunk of actions; trained to predict the next one.

    actions  b t a ── cosine transform over time ── x scale, rounded ── b (t a) ── byte-pair encoding ── tokens  b l

Slow movements come first, since the lowest frequencies of all dimensions do, and cost little, since most coefficients are then
0 and a few of them often follow each other: FAST, Pertsch et al. 2025 (arXiv 2501.09747). The tokenizer is learned from the
training data's chunks, and saved with the policy.
"""

import math
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer, models, trainers
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vla_mini.layers import Block, at_least_fp32
from vla_mini.types import Context

FILE = "action_tokenizer.json"  # in a saved policy
START = "[START]"  # the token before the first, and after the last of a chunk that is shorter than others; of no coefficients
FIRST = 0x4E00  # each coefficient is a letter, from this one on: 20,000 that no normalisation changes


class FastHead(nn.Module):
    """A causal transformer over tokens, which all look at the context's tokens, too.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden, depth, num_heads: of the transformer
    - scale: coefficients are rounded to its inverse
    - vocab_size: at most so many tokens; each coefficient by itself is one of them
    - action_chunks: of the training data, normalised, to learn the tokens from; None: coefficients stay single
    - folder: where `save_tokenizer` left the tokens, in a saved policy: they go before `action_chunks`
    """

    def __init__(
        self,
        *,
        context_width: int,
        num_tokens: int,
        horizon: int,
        action_size: int,
        hidden: int = 96,
        depth: int = 2,
        num_heads: int = 4,
        scale: float = 5.0,
        vocab_size: int = 512,
        action_chunks: Float[Tensor, "n t a"] | None = None,
        folder: str | Path | None = None,
    ):
        super().__init__()
        self.horizon, self.action_size, self.hidden, self.depth, self.num_heads = horizon, action_size, hidden, depth, num_heads
        self.scale, self.vocab_size = scale, vocab_size
        if depth < 1:
            raise ValueError(f"depth={depth}: at least 1 is needed, or no token would see the context")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale:g}: a number above 0 is needed")
        self.largest = math.ceil(scale * math.sqrt(horizon))  # coefficient of actions within [-1, 1]
        letters = [chr(FIRST + number) for number in range(2 * self.largest + 1)]
        if len(letters) + 1 > vocab_size:
            raise ValueError(
                f"scale={scale:g}, vocab_size={vocab_size}: {len(letters) + 1} are needed for single coefficients alone"
            )
        if folder is not None and (Path(folder) / FILE).is_file():
            self.tokenizer = Tokenizer.from_file(f"{folder}/{FILE}")
        elif folder is not None and action_chunks is None:
            raise ValueError(f"{folder}/{FILE} is missing")
        else:
            self.tokenizer = self._learned(letters, [] if action_chunks is None else self._spell(action_chunks))
        if missing := {START, *letters} - self.tokenizer.get_vocab().keys():
            raise ValueError(f"{FILE} of scale={scale:g} lacks {len(missing)} of {len(letters) + 1} single tokens")
        self.start = self.tokenizer.token_to_id(START)
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        spelled = [[] if word == START else [ord(letter) - FIRST - self.largest for letter in word] for word, _ in words]
        # What each token stands for: coefficients, followed by zeros, and how many they are.
        size = horizon * action_size
        self.register_buffer("coefficients", torch.tensor([[*each, *[0] * size][:size] for each in spelled]), persistent=False)
        self.register_buffer("lengths", torch.tensor([len(each) for each in spelled]), persistent=False)
        near = torch.cdist(self.coefficients.float(), self.coefficients.float(), p=math.inf) <= 1
        self.register_buffer("alike", near & (self.lengths[:, None] == self.lengths), persistent=False)
        self.enter = nn.Linear(context_width, hidden)
        self.embed = nn.Embedding(len(words), hidden)
        self.kinds = nn.Parameter(torch.zeros(num_tokens, hidden))  # what tells context tokens apart
        self.place = nn.Embedding(size + 1, hidden)  # how many coefficients were said before
        self.blocks = nn.ModuleList(Block(width=hidden, num_heads=num_heads) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, len(words)))

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Cross-entropy of the next token, in nats, averaged over the chunk's tokens: the same for each of its actions.

        Past an episode's end, its last action goes on. Of actions that are not finite, the loss is not, either."""
        last = (~is_pad).sum(dim=1, keepdim=True) - 1
        held = torch.minimum(torch.arange(self.horizon, device=last.device), last)
        tokens = self.tokenize(actions.take_along_dim(held[..., None], dim=1))
        logits = rearrange(self._logits(context, tokens).to(actions.dtype), "b l v -> b v l")
        real = self.lengths[tokens] > 0
        nats = F.cross_entropy(logits, tokens, reduction="none") * real
        mean = nats.sum(dim=1) / real.sum(dim=1) + 0 * actions.sum(dim=(1, 2))
        return mean[:, None].expand(-1, self.horizon)

    def predict(self, context: Context, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        """The likeliest token after each; of each, the mean of those like it, by their probabilities, which is differentiable.

        Like it are tokens as long, none of whose coefficients is further away than the next: two ways are never averaged."""
        tokens = self._decode(context)
        chances = at_least_fp32(self._logits(context, tokens)).masked_fill(~self.alike[tokens], -math.inf).softmax(dim=-1)
        with torch.autocast(chances.device.type, enabled=False):  # coefficients need more than bf16's three digits
            expected = chances @ self.coefficients.to(chances.dtype)
            return cosines(self.horizon, like=expected).T @ self._joined(tokens, expected) / self.scale

    @torch.compiler.disable  # looks at values
    def tokenize(self, actions: Float[Tensor, "b t a"]) -> Int64[Tensor, "b l"]:
        """The tokens that spell normalised actions; shorter ones are followed by the start token."""
        encodings = self.tokenizer.encode_batch(self._spell(actions))
        longest = max(len(encoding.ids) for encoding in encodings)
        rows = [[*encoding.ids, *[self.start] * (longest - len(encoding.ids))] for encoding in encodings]
        return torch.tensor(rows, device=actions.device)

    def save_tokenizer(self, folder: str | Path) -> None:
        self.tokenizer.save(f"{folder}/{FILE}")

    @torch.no_grad()
    def _spell(self, actions: Float[Tensor, "b t a"]) -> list[str]:
        """Each chunk's rounded coefficients as letters, the lowest frequencies first."""
        # Letters are for the CPU, where there is float64; autocast leaves that alone: spelled as where the tokens were learned.
        actions = actions.cpu().double()
        rounded = (self.scale * cosines(self.horizon, like=actions) @ actions).round().clamp(-self.largest, self.largest)
        rows = rearrange(rounded.nan_to_num().long() + self.largest + FIRST, "b t a -> b (t a)").tolist()
        return ["".join(map(chr, row)) for row in rows]

    def _learned(self, letters: list[str], texts: list[str]) -> Tokenizer:
        """A byte-pair encoding: what often stands side by side becomes one token, as long as there is room."""
        tokenizer = Tokenizer(models.BPE())
        options = {"vocab_size": self.vocab_size, "min_frequency": 2, "show_progress": False}
        trainer = trainers.BpeTrainer(special_tokens=[START], initial_alphabet=letters, **options)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    def _joined(self, tokens: Int64[Tensor, "b l"], expected: Float[Tensor, "b l n"]) -> Float[Tensor, "b t a"]:
        """The coefficients of each token behind those of the tokens before it."""
        number = torch.arange(expected.shape[-1], device=tokens.device)
        place, own = self._offsets(tokens)[..., None] + number, number < self.lengths[tokens][..., None]
        joined = expected.new_zeros(len(tokens), len(number) + 1)  # the last one is for zeros behind a token's own
        joined = joined.scatter_add(1, torch.where(own, place, len(number)).flatten(1), expected.flatten(1))
        return rearrange(joined[:, :-1], "b (t a) -> b t a", t=self.horizon)

    def _offsets(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b l"]:
        """How many coefficients were said before each token."""
        return self.lengths[tokens].cumsum(dim=1) - self.lengths[tokens]

    def _logits(self, context: Context, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """Of each token, from the context and the tokens before it."""
        before = F.pad(tokens[:, :-1], (1, 0), value=self.start)
        x = torch.cat([self.enter(context.tokens) + self.kinds, self.embed(before) + self.place(self._offsets(tokens))], dim=1)
        size, num_seen, length = len(x), context.tokens.shape[1], x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        seen = torch.cat([context.mask, context.mask.new_ones(size, length - num_seen)], dim=1)
        mask = (causal | (torch.arange(length, device=x.device) < num_seen)) & seen[:, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(x[:, num_seen:])

    @torch.no_grad()
    def _decode(self, context: Context) -> Int64[Tensor, "b l"]:
        """The likeliest next token, again and again, of those that the chunk has room for, until all chunks are full."""
        tokens = torch.zeros(len(context.tokens), 0, dtype=torch.int64, device=context.tokens.device)
        while True:
            room = self.horizon * self.action_size - self.lengths[tokens].sum(dim=1, keepdim=True)
            if not room.any():
                return tokens
            logits = self._logits(context, F.pad(tokens, (0, 1)))[:, -1]
            fits = (self.lengths <= room) & ((self.lengths > 0) == (room > 0))
            tokens = torch.cat([tokens, logits.masked_fill(~fits, -math.inf).argmax(dim=1, keepdim=True)], dim=1)


def cosines(size: int, *, like: Tensor) -> Float[Tensor, "f t"]:
    """The orthonormal discrete cosine transform (DCT-II): rows are frequencies, from 0 on."""
    step = torch.arange(size, dtype=like.dtype, device=like.device)
    waves = math.sqrt(2 / size) * torch.cos(math.pi / size * step[:, None] * (step + 0.5))
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])
