"""The one embedding table: whose its rows are, which of them are active, and what is read from and against them.

Words come first, then a *segment* of rows for each level of each coded part, as the ledger lays them out
(`vocabulary_pan.py`). All of them are reserved from the start; two masks say which are tokens and which ever were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .layout_pan import group_by_token, with_absent
from .sense_configuration_pan import ACTION

if TYPE_CHECKING:
    from .codecs_pan import Codec
    from .configuration_pan import PanConfig
    from .modeling_pan import PanModel

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")
T = TypeVar("T", nn.Embedding, nn.Linear)


class EmbeddingTable:
    """The rows of the one vocabulary of a model: whose they are, which are active, what is read from and against them.

    The rows are those of the backbone's own input and output embeddings. Two masks say which rows are tokens; they are
    buffers of the model itself, since checkpoints name them `live_rows` and `born_rows` at the top level. So the table
    holds the model alone and asks it every time: adapters, quantisers and resizing replace the modules in it.

    Args:
        model ([`PanModel`]): with senses.
    """

    def __init__(self, model: PanModel):
        self.model = model

    # ---- which rows are tokens

    @property
    def active(self) -> Tensor:
        """Which rows are tokens, `(vocab_size,)` bool; all others are masked out of every logit."""
        return self.model.live_rows

    @property
    def ever_active(self) -> Tensor:
        """Which rows are or were tokens, `(vocab_size,)` bool: a retired code still occurs in what was encoded
        before."""
        return self.model.born_rows

    def register_masks(self) -> None:
        """Gives a new model its two masks."""
        for name in ("live_rows", "born_rows"):
            self.model.register_buffer(name, torch.zeros(self.model.config.vocab_size, dtype=torch.bool))

    def reset_masks(self) -> None:
        """What is active at first: the backbone's words, and of each segment as many codes as its part has."""
        config = self.model.config
        active = torch.arange(config.vocab_size) < config.text_size
        for part, described in config.coded_parts().items():
            for ending, (_, size) in described.segments.items():
                for offset, capacity in config.runs(f"{part}.{ending}"):
                    active[offset : offset + min(size, capacity)] = True
                    size = max(0, size - capacity)
        init.copy_(self.active, active)
        init.copy_(self.ever_active, active)

    def activate(self, ids: Tensor | list[int]) -> None:
        """Makes rows tokens."""
        self.active[ids] = self.ever_active[ids] = True

    def deactivate(self, ids: Tensor | list[int]) -> None:
        """Makes rows tokens no more; that they were stays known."""
        self.active[ids] = False

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """Makes room for `rows` rows in all. Unlike growth this changes shapes: no optimizer state, adapter or
        compiled graph of before fits any more."""
        model, old = self.model, len(self.active)
        model.language_model.resize_token_embeddings(rows, mean_resizing=False)
        for weight in self.weights():
            weight[old:].normal_(std=model.config.initializer_range)
        for name in ("live_rows", "born_rows"):
            model.register_buffer(name, nn.functional.pad(getattr(model, name), (0, rows - old)))

    # ---- rows and segments

    def weights(self) -> list[Tensor]:
        """The weights whose rows are tokens: one where input and output are tied, else two."""
        return tables_of(self.model)

    def segment_rows(self, part: str, level: int | str) -> Tensor:
        """The rows of one level's segment (or of "merges"), `(capacity,)` int64: row `i` is the id of code `i`."""
        runs = [torch.arange(first, first + count) for first, count in self.model.config.runs(f"{part}.{level}")]
        return torch.cat(runs).to(self.model.device)

    def code_rows(self, part: str, level: int, codes: Tensor) -> Tensor:
        """Input rows of codes `(...)` of one level of a sense, or of the part `action`: `(..., hidden_size)`."""
        runs = self.model.config.runs(f"{part}.{level}")
        ids = codes + runs[0][0] if len(runs) == 1 else self.segment_rows(part, level)[codes]
        return _looked_up(check_table(self.model.get_input_embeddings()), ids)

    def word_rows(self, ids: Tensor) -> Tensor:
        """Input rows of words `(...)`, `(..., hidden_size)`; zero for what is absent (below 0)."""
        return _looked_up(self.model.get_input_embeddings(), ids.clamp(min=0)) * (ids >= 0).unsqueeze(-1)

    def code_table(self, part: str, level: int) -> Tensor:
        """Output rows of one level's segment, `(capacity, hidden_size)`: logits cost its size, not the
        vocabulary's."""
        return self._segment_of(check_table(self.model.get_output_embeddings()).weight, part, level)

    def active_codes(self, part: str, level: int | str) -> Tensor:
        """Which codes of a segment exist, `(capacity,)` bool."""
        return self._segment_of(self.active, part, level)

    def _segment_of(self, table: Tensor, part: str, level: int | str) -> Tensor:
        """A segment's rows of a table: a view, as long as the segment is one run."""
        runs = self.model.config.runs(f"{part}.{level}")
        if len(runs) > 1:
            return table[self.segment_rows(part, level)]
        ((first, count),) = runs
        return table[first : first + count]

    def start_code_rows(self, parts: Iterable[str]) -> None:
        """Lets the rows of codes start from what the codes stand for, see below. What the rows had learned is lost,
        so this is for codes that no backbone has been trained on.

        Args:
            parts: names of senses, or `action`; levels that stand for nothing yet stay as they are.
        """
        model = self.model
        for part in parts:
            for level, (descriptions, described) in enumerate(part_codec(model, part).describe()):
                ids = self.segment_rows(part, level)
                for table in self.weights():
                    rows = table.detach()[ids]
                    start_rows(rows, descriptions, described, model.config.initializer_range, seed=int(ids[0]))
                    table.detach()[ids] = rows

    # ---- words, and logits over everything

    def active_words(self) -> Tensor:
        """Which rows are words that exist, `(rows up to the last reserved for words,)` bool: `text_capacity` of them,
        and more where words were given rows behind the codes."""
        runs = self.model.config.runs("text")
        if len(runs) == 1:
            return self.active[: self.model.config.text_capacity]
        active = torch.zeros(sum(runs[-1]), dtype=torch.bool, device=self.active.device)
        for first, count in runs:
            active[first : first + count] = self.active[first : first + count]
        return active

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 over words alone, as many as `active_words` has rows, minus infinity where there is no
        word."""
        head, active = check_table(self.model.get_output_embeddings()), self.active_words()
        bias = None if getattr(head, "bias", None) is None else head.bias[: len(active)]
        logits = nn.functional.linear(hidden, head.weight[: len(active)], bias)
        return logits.float().masked_fill(~active, -torch.inf)

    def mask_inactive(self, logits: Tensor, words: Tensor | None = None) -> Tensor:
        """Logits `(..., rows)` over the first rows, the least there is where a row is no token; if there are `words`
        (see `active_words`), where it is none of these: codes may stand between them."""
        active = self.active if words is None else words
        return logits.masked_fill(~active[: logits.shape[-1]], torch.finfo(logits.dtype).min)

    def over_all_rows(self, logits: Tensor) -> Tensor:
        """Logits `(..., rows)` over the first rows as logits `(..., vocab_size)`, the least there is elsewhere."""
        rest = len(self.active) - logits.shape[-1]
        return nn.functional.pad(logits, (0, rest), value=torch.finfo(logits.dtype).min) if rest else logits

    # ---- what layers make of codes

    def code_tables(self, whole: bool = False) -> CodeTables:
        """What the layers that read or write codes make of every code; valid until a weight or mask changes.
        `whole`: of every row reserved for codes, so that growth changes no size, as always in a compiled forward.

        A forward of training and a call of `simulate` make them once and look codes up, instead of multiplying the row
        of each code they meet."""
        model, tables = self.model, CodeTables()
        for part, described in model.config.coded_parts().items():
            if described.is_token:
                continue
            ever = [self._segment_of(self.ever_active, part, level) for level in range(described.num_levels)]
            sizes = tables.sizes[part] = [len(each) if whole else extent(each) for each in ever]
            codes = [torch.arange(size, device=model.device) for size in sizes]
            rows = [self.code_rows(part, level, each) for level, each in enumerate(codes)]
            tables.embeddings[part] = part_embedding(model, part).table(rows)
            if part in model.senses:
                tables.levels[part] = [
                    readout.tables(rows, self.code_table(part, level)[:size], self.active_codes(part, level)[:size])
                    for level, (readout, size) in enumerate(zip(model.readouts[part], sizes, strict=True))
                ]
            if part in model.glances:
                tables.change[part] = model.glances[part].tables(rows[0])
        return tables


def _looked_up(table: nn.Module, ids: Tensor) -> Tensor:
    """Rows of ids `(...)`, `(..., hidden_size)`, asked for as a batch of one: hooks on a table, such as that of
    NEFTune, take what comes out for `(batch, length, hidden_size)`."""
    return table(ids.reshape(1, -1)).reshape(*ids.shape, -1)


def part_codec(model: PanModel, part: str) -> Codec:
    """What encodes a sense, or a part of the action."""
    if part in model.senses:
        return model.senses[part]
    return model.action_codec if part == ACTION else model.action_codecs[part.removeprefix(f"{ACTION}.")]


def part_embedding(model: PanModel, part: str) -> StateTokenEmbedding:
    """What embeds the codes of a sense, or of a part of the action that is no token."""
    if part in model.state_embeddings:
        return model.state_embeddings[part]
    return model.action_embedding if part == ACTION else model.action_embeddings[part.removeprefix(f"{ACTION}.")]


def check_room(config: PanConfig) -> None:
    """Raises ValueError where the backbone's table is too small for the words and codes of a configuration."""
    needed = max(first + count for name in ["text", *config.segments] for first, count in config.runs(name))
    if config.vocab_size < needed:
        raise ValueError(
            f"The backbone's table has {config.vocab_size} rows; words and codes need {needed}. Make the model with "
            f"PanModel.from_backbone, which resizes it, or set `text_config.vocab_size` to {needed} or more."
        )


def tables_of(model: PreTrainedModel) -> list[Tensor]:
    """The embedding table and, where it is not the same, the one that is read out against."""
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    tables: list[Tensor] = [check_table(read).weight, check_table(written).weight]
    return list({id(table): table for table in tables}.values())


def extent(ever_active: Tensor) -> int:
    """Rows up to the last that is marked; all of them in a compiled forward, which growth must not change."""
    return len(ever_active) if torch.compiler.is_compiling() else int(ever_active.nonzero()[-1]) + 1


# ---- Modules by name or in a row, of one class each, which PyTorch's own containers do not say.


def module_dict(modules: Mapping[str, M]) -> dict[str, M]:
    """An `nn.ModuleDict`, which a checker takes for a dict of what is in it."""
    return cast("dict[str, M]", nn.ModuleDict(cast("dict[str, nn.Module]", modules)))


def module_list(modules: Iterable[M]) -> list[M]:
    """An `nn.ModuleList`, which a checker takes for a list of what is in it."""
    return cast("list[M]", nn.ModuleList(cast("Iterable[nn.Module]", modules)))


# ---- Parts that stay in float32: in another type a frame would get other codes.


class Float32Module(nn.Module):
    """A module whose parameters and buffers stay in float32, whatever the model around it is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            is_cast = tensor.dtype == torch.float32 != applied.dtype
            return tensor.to(applied.device) if is_cast else applied

        # `to`, `half`, `bfloat16` and `double` come here, those of a module around this one too
        return super()._apply(moved, recurse)


def without_autocast(method: Callable[Concatenate[C, Tensor, P], R]) -> Callable[Concatenate[C, Tensor, P], R]:
    """A method of values that computes in float32 under autocast, too."""

    @functools.wraps(method)
    def call(self: C, values: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(values.device.type, enabled=False):
            return method(self, values, *args, **kwargs)

    return call


# ---- Layers that are read and not called: their weights with whatever an adapter (PEFT) adds to them.
#
# Where one matrix serves all codes, or a part of it some inputs, the layer's weight is multiplied by hand. An adapter
# wraps the layer and still shows the weight without itself, so it would be passed over in silence. What the wrapped
# layer does to an identity matrix is its weight, whatever the kind of adapter. Nothing here imports PEFT.


def affine(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight `(out, in)` and bias `(out,)`, or None without one, of a linear layer, its active adapters included."""
    plain = getattr(layer, "base_layer", None)
    if plain is None:
        return layer.weight, layer.bias
    if layer.disable_adapters or layer.merged:
        return plain.weight, plain.bias
    bias = layer(plain.weight.new_zeros(1, plain.in_features))
    weight = layer(torch.eye(plain.in_features, dtype=plain.weight.dtype, device=plain.weight.device)) - bias
    return weight.T, bias.squeeze(0)


def check_table(module: T) -> T:
    """The module of a vocabulary's rows, which are read by segment.

    Raises:
        ValueError: an adapter is on it, which reading rows would pass over.
    """
    if hasattr(module, "base_layer") or hasattr(module, "token_adapter"):
        raise ValueError(
            "An adapter is on the vocabulary's table (embed_tokens or lm_head), whose rows are read one segment at a "
            "time, past the adapter. Leave the table out of `target_modules` and `trainable_token_indices`; rows of "
            "new tokens are trained by pan_hf.adapters.train_grown_rows and saved with the adapter."
        )
    return module


def check_tied(model: PanModel) -> None:
    """Raises ValueError where tied tables have an adapter each. PEFT ties adapters by the whole names of the layers,
    and the two would drift apart until merging puts one of them into both."""
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    read, written = (getattr(table, "token_adapter", None) for table in tables)
    if not model.config.tie_word_embeddings or read is None or written is None:
        return
    if written.tied_adapter is None:
        raise ValueError(
            "The tied tables have an adapter each, of which merging would keep one. Give `trainable_token_indices` as "
            "a list, or name both tables whole: language_model.model.embed_tokens and language_model.lm_head."
        )


@dataclass
class ChangeTables:
    """Level 0's segment of the vocabulary as a change predictor meets it, a row a code.

    Args:
        cells `(K + 1, A)`: what a code is at its cell, the last row if it is absent.
        anywhere `(K, H)`: what it adds to the gist that it stands anywhere.
    """

    cells: Tensor
    anywhere: Tensor


class StateTokenEmbedding(nn.Module):
    """Adds up the vocabulary rows of the codes of each state token, its projected latents, and what the token is."""

    def __init__(self, sense, hidden_size: int):
        super().__init__()
        self.sense = sense
        self.place = nn.Parameter(torch.empty(sense.num_state_tokens, hidden_size))  # checkpoints name it so
        self.fold = module_list(
            nn.Linear(count * hidden_size, hidden_size, bias=False) for count in sense.codes_per_token
        )
        self.latent = nn.Linear(sense.latent_dim, hidden_size, bias=False) if sense.latent_dim else None

    def reset_pan_parameters(self, std: float) -> None:
        init.normal_(self.place, std=std)

    def table(self, rows: list[Tensor]) -> Tensor:
        """What each code adds to its token, worked out once for all of them: rows of each level's segment `(K, H)` ->
        `(sum of r * (K + 1), H)`, level by level, a run of K + 1 for each slot of a token; the last of a run is for
        what is absent, and adds nothing."""
        parts = []
        for fold, level_rows in zip(self.fold, (with_absent(part) for part in rows), strict=True):
            weight = affine(fold)[0].unflatten(1, (-1, level_rows.shape[1]))  # (H, r, H)
            parts.append(torch.einsum("ki,ori->rko", level_rows, weight).flatten(0, 1))
        return torch.cat(parts)

    def codes(self, codes: list[Tensor], table: Tensor, sizes: list[int]) -> Tensor:
        """Codes of a prefix of levels, one `(B, n)` a level -> `(B, P, H)`, without what the tokens are.

        Args: table, see `table`; sizes, K of each level in it."""
        indices, first = [], 0
        for level, (level_codes, size) in enumerate(zip(codes, sizes, strict=False)):
            slots = group_by_token(level_codes, self.sense, level) % (size + 1)  # (B, P, r)
            end = first + (size + 1) * slots.shape[-1]
            indices.append(slots + torch.arange(first, end, size + 1, device=slots.device))
            first = end
        index = torch.cat(indices, -1)
        return nn.functional.embedding_bag(index.flatten(0, 1), table, mode="sum").unflatten(0, index.shape[:2])

    def forward(self, codes: list[Tensor], table: Tensor, sizes: list[int], latents: Tensor | None = None) -> Tensor:
        """Args: codes, table, sizes as for `codes`; latents `(B, P, latent_dim)`. Returns: `(B, P, H)`."""
        x = self.codes(codes, table, sizes) + self.place
        if latents is not None and self.latent is not None:
            x = x + self.latent(latents.nan_to_num().to(x.dtype))  # absent ones add nothing
        return x


@dataclass
class LevelTables:
    """One level's segment of the vocabulary as its readout meets it, a row a code (see `LevelReadout.tables`).

    Args:
        current `(K + 1, A)`: what the current code adds to the features, the last row if it is absent; coarser: the
            same for each level before this one.
        drawn `(K, A)`: what a code that is drawn tells the sentence head; None without one.
        weight `(K, A)`, bias `(K,)`: features to logits; the bias is minus infinity where a row is not active.
    """

    current: Tensor
    coarser: list[Tensor]
    drawn: Tensor | None
    weight: Tensor
    bias: Tensor


@dataclass
class CodeTables:
    """The tables of every coded part (see `EmbeddingTable.code_tables`).

    Args:
        sizes: by part, K of each level: rows up to the last that was ever active.
        embeddings: by part, see `StateTokenEmbedding.table`.
        levels: by sense, the tables of each level.
        change: by sense with a change predictor, see `ChangePredictor.tables`.
    """

    sizes: dict[str, list[int]] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    levels: dict[str, list[LevelTables]] = field(default_factory=dict)
    change: dict[str, ChangeTables] = field(default_factory=dict)


# ---- What a code's row of the vocabulary starts from: what the code stands for.
#
# Rows drawn at random would make two codes that look alike as foreign to one another as any other two, and the
# backbone would have to learn for each of them what it has learned for the other. So a row starts as a fixed random
# projection of its code's description (the codebook vector of an image code, the neighbourhood of a lattice digit),
# plus a part of chance that keeps codes of one meaning apart. Distances between descriptions survive the projection
# (Johnson and Lindenstrauss 1984). From there on rows are trained like any other.


DESCRIBED = 0.8  # share of a row's variance that its description decides


@torch.no_grad()
def start_rows(rows: Tensor, descriptions: Tensor, described: Tensor, std: float, seed: int) -> None:
    """Writes the rows of one segment in place.

    Args:
        rows `(K, H)`: a segment of an embedding table.
        descriptions `(K, D)`: what each code stands for, in any unit.
        described `(K,)` bool: codes that stand for something yet; the rows of the others stay as they are.
        std (`float`): of the entries of a row.
        seed (`int`): of projection and chance.
    """
    descriptions, described = descriptions.to(rows.device), described.to(rows.device)
    known = descriptions[described].float()
    if len(known) < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    centred = known - known.mean(0)
    scale = centred.square().sum(-1).mean().sqrt().clamp(min=1e-12)
    projection = torch.randn(known.shape[1], rows.shape[1], generator=generator).to(known.device)
    chance = torch.randn(len(known), rows.shape[1], generator=generator).to(known.device)
    mixed = DESCRIBED**0.5 * (centred / scale) @ projection + (1 - DESCRIBED) ** 0.5 * chance
    rows[described] = (std * mixed).to(rows.dtype)


# ---- A layer that adds nothing until it is trained.


class ZeroInitLinear(nn.Linear):
    """A linear layer whose weight and bias start at zero, so that a branch adds nothing until it is trained."""

    def reset_pan_parameters(self, _std: float) -> None:
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


# ---- Statistics of a batch that several processes share: each trains as one process with the whole batch would.
#
# Averaging gradients over processes is right for plain means alone. What a loss divides by (a sum of weights, how much
# stands still), what a codebook follows and what a scale tracks are those of the whole batch, so processes tell each
# other their parts. In one process every function here gives back what it got.


def are_several() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, without a gradient."""
    if not are_several():
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def shared_mean(tensor: Tensor) -> Tensor:
    """The mean over processes, without a gradient: what a part of a loss is divided by, so that the mean of the parts
    is the whole. Outside of training, where processes may look at different things, it is this process's own."""
    if not (are_several() and torch.is_grad_enabled()):
        return tensor.detach()
    return all_reduce_sum(tensor) / dist.get_world_size()


def log_of_mean(part: Tensor, least: float) -> Tensor:
    """`log(mean + least)` of the mean over processes of a scalar `part`, as a loss whose gradient, averaged over
    processes, is that of the whole."""
    whole = shared_mean(part) + least
    return whole.log() + (part + least) / whole - 1


def variance(rows: Tensor) -> Tensor:
    """Unbiased variance of each column of `rows` `(n, d)` over the rows of all processes, `(d,)`."""
    count = all_reduce_sum(torch.tensor(float(len(rows)), device=rows.device))
    mean = all_reduce_sum(rows.sum(0)) / count.clamp(min=1)
    return all_reduce_sum((rows.detach() - mean).square().sum(0)) / (count - 1).clamp(min=1)


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, n of each, in order."""
    if not are_several():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def broadcast_from_main(value: Any) -> Any:
    """The first process's value, so that all processes go on alike: of a tensor, which has the same shape in each, a
    copy on its device; of anything else a copy in which tensors of a tuple are on the CPU."""
    if not are_several():
        return value
    if isinstance(value, Tensor):
        value = value.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, src=0)
        return value
    if isinstance(value, tuple):
        value = tuple(part.cpu() if isinstance(part, Tensor) else part for part in value)
    parts = [value]
    dist.broadcast_object_list(parts, src=0)
    return parts[0]
