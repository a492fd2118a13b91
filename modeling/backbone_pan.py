"""The language model in the middle: how it is run, what it must be able to do, and how its rows for codes begin.

A step of the world is laid out in its sequence with a mask and positions of our own (`layout_pan.py`): states look at
themselves both ways, and queries stand between two states that must not notice them. Most causal language models take
both. Models without attention (Mamba), or whose attention reads distances off the order of the keys (ALiBi), do not,
and would quietly learn another world than the one they simulate: whether a backbone fits is tried out, not looked up.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from .embedding_pan import CodeTables, tables_of
from .layout_pan import Pass, Tokens, TokenSelection, additive, at_least, hide_padding
from .state_pan import Belief, fork_cache, select_cache

if TYPE_CHECKING:
    from .modeling_pan import PanModel

# Of the spread of the hidden states: rounding, not another position. In float32 even untrained attention is above it.
_TOLERANCE = {torch.float32: 1e-4}
_TOLERANCE_HALF = 0.05


@functools.cache
def cache_argument(kind: type[nn.Module]) -> str:
    """What a model's forward calls its cache: newer Transformers say `cache`, older ones and code from the Hub
    `past_key_values`."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class TrunkCall:
    """What a kind of language model calls its cache, and the kinds of layers that want a mask by name, if any
    do; known once, so that a compiled step need not look it up."""

    cache_argument: str
    mask_kinds: tuple[str, ...]


def trunk_call(language_model: PreTrainedModel) -> TrunkCall:
    """How a language model is called by `run_trunk`."""
    kinds = set(getattr(language_model.config, "layer_types", None) or [])
    mask_kinds = tuple(sorted(kinds)) if kinds - {"full_attention"} else ()
    return TrunkCall(cache_argument(type(language_model.base_model)), mask_kinds)  # type: ignore[arg-type]  # a class


def run_trunk(
    language_model: PreTrainedModel, call: TrunkCall, embeddings: Tensor, mask: Tensor, positions: Tensor, cache
) -> Tensor:
    """A language model without its head. Args: embeddings `(B, L, H)`; mask bool `(1 or B, 1, L, keys)`; positions
    `(L,)`, or `(B, L)` if rows differ; cache, appended to if given. Returns: `(B, L, H)`."""
    whole = additive(mask, embeddings.dtype).expand(len(embeddings), -1, -1, -1)
    masks = dict.fromkeys(call.mask_kinds, whole) if call.mask_kinds else whole
    return language_model.base_model(
        inputs_embeds=embeddings,
        attention_mask=masks,
        position_ids=positions.expand(len(embeddings), -1),
        use_cache=cache is not None,
        **{call.cache_argument: cache},
    ).last_hidden_state


@torch.no_grad()
def check_backbone(backbone: PreTrainedModel) -> None:
    """Raises ValueError unless a language model keeps to a mask and to positions that it is given.

    Three embeddings, the second hidden from the others, must leave the others as they are without it; and the first
    must see the last.
    """
    was_training, name = backbone.training, type(backbone).__name__
    backbone.eval()
    try:
        with_hidden, without, other = _tried(backbone)
    except Exception as error:
        raise ValueError(_misfit(name, f"a forward with a mask of its own failed ({error})")) from error
    finally:
        backbone.train(was_training)
    spread = without.std().clamp(min=1e-12)
    tolerance = _TOLERANCE.get(backbone.dtype, _TOLERANCE_HALF)
    if float((with_hidden - without).abs().max() / spread) > tolerance:
        raise ValueError(_misfit(name, "what is hidden from a position still moves or reaches it"))
    if torch.equal(other[0], without[0]):
        raise ValueError(_misfit(name, "no position can look at a later one"))


def _tried(backbone: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `(2, H)` of a first and a last position: with a hidden one between them, without, and without
    where the last holds something else."""
    table = backbone.get_input_embeddings()
    ids = torch.tensor([3, 1, 2, 0], device=table.weight.device) % len(table.weight)
    first, hidden, last, other = table(ids)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool, device=ids.device)
    mask[..., [0, 2], 1] = False
    positions = torch.tensor([0, 1, 1], device=ids.device)
    call, three = trunk_call(backbone), torch.stack([first, hidden, last]).unsqueeze(0)
    found = run_trunk(backbone, call, three, mask, positions, None)[0].float()
    pairs = torch.stack([torch.stack([first, last]), torch.stack([first, other])])
    without, changed = run_trunk(backbone, call, pairs, mask[..., :2, [0, 2]], positions[:2], None).float()
    return found[[0, 2]], without, changed


def _misfit(name: str, reason: str) -> str:
    return (
        f"{name} cannot be the backbone of a world model: {reason}. Use a model whose every layer is attention that "
        "takes a 4-D mask and position ids (Llama, Qwen, Gemma, Mistral, Phi, GPT-2, GPT-NeoX and most others), with "
        "attn_implementation 'sdpa' or 'eager'."
    )


def keep_weights(model: PreTrainedModel) -> None:
    """Marks a model as initialised, so that `post_init` of the model around it leaves its weights alone."""
    for module in model.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]  # a mark of Transformers
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # the same


@torch.no_grad()
def fill_new_rows(backbone: PreTrainedModel, first: int, std: float) -> None:
    """Rows behind the backbone's own words start as spread out as its words are."""
    for table in tables_of(backbone):
        table[first:].normal_(std=std)


# ---- One step's runs of the backbone: pass by pass behind what is cached, whole or for a selection of tokens.
#
# Shapes: N = rows of the belief, n = rows that are still run, H = backbone width.


GROUP_ENDS = (0, 2, 4, 8, 16, 32, 64, 128)  # rows with so many selected tokens at most are run together


class BackboneRun:
    """Runs the backbone for one step of simulation; the trunk goes along with the first pass.

    Args:
        model ([`PanModel`]): whose backbone.
        belief ([`Belief`]): of N rows, which it leaves as it is.
        trunk `(N, trunk_length, H)`: embeddings of the state and the action.
        selection ([`TokenSelection`], *optional*): the state tokens that are run; all by default.

    Attributes:
        hidden: by pass `(N, length, H)`, zero where nothing was run, and "action" `(N, H)`.
        cache: with the trunk's keys and values behind those of the belief; None where nothing is to be kept.
        length (`int`): positions of this step in `cache`.
        index `(n,)`: the rows that are still run; None for all.
    """

    def __init__(self, model: PanModel, belief: Belief, trunk: Tensor, selection: TokenSelection | None = None):
        self.model, self.layout, self.trunk, self.selection = model, model.layout, trunk, selection
        self.hidden: dict[str, Tensor] = {}
        self.length, self._seen = 0, 0
        self.index: Tensor | None = None
        self._ran: list[tuple[Tensor | int, Tensor | None]] = []  # positions of a pass, of which rows
        self._next = 0  # where words go on behind queries that were run in part
        passes = self.layout.passes  # that of a text runs once a word
        once = len(passes) == 1 and bool(passes[0].levels)
        keeps = belief.cache is not None or model.config.context_steps > 1 or not once
        self.cache = self._live = fork_cache(belief.cache) if keeps else None
        self.past, self._start = belief.num_cached, belief.next_position()
        # which of the first cached positions are words or steps of a row's own; nobody looks at padding
        # a configuration that was made by hand may name no padding, and then no id is
        self._visible = belief.visible(getattr(model.config, "pad_token_id", -1))
        self._keys: Tokens | None = None

    def positions(self) -> Tensor:
        """How many positions were run for each row, `(N,)` float."""
        total = torch.zeros(len(self.trunk), device=self.trunk.device)
        for count, rows in self._ran:
            total[slice(None) if rows is None else rows] += count
        return total

    @property
    def rows(self) -> int:
        return len(self.trunk) if self.index is None else len(self.index)

    def keep(self, index: Tensor) -> None:
        """From here on only these rows are run, `(n,)` int64, some of those that still were."""
        if len(index) == self.rows:
            return
        inside = index if self.index is None else torch.searchsorted(self.index, index)
        self._live = select_cache(self._live, inside)
        self._visible = None if self._visible is None else self._visible[inside]
        self._start = self._start[inside] if isinstance(self._start, Tensor) else self._start
        if self._keys is not None:
            self._keys = Tokens(self._keys.position[inside], self._keys.valid[inside], self._keys.length)
        self.index = index

    def queries(self, each: Pass, x: Tensor) -> None:
        """One pass of levels. Args: x, its queries `(N, each.length, H)`."""
        first = not self._seen
        if self.selection is not None:
            self._selected(self.selection, each, x, first)
            return
        x = self._some(x)
        out = self._continue(torch.cat([self.trunk, x], 1) if first else x)
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        self.hidden[each.name] = self._all(out[:, -each.length :])
        self._ran.append((out.shape[1], self.index))

    def lead(self) -> None:
        """Runs the trunk alone, for a choice to be made before there is anything to read, or nothing is read."""
        self.hidden["action"] = self._continue(self.trunk)[:, -1]
        self._ran.append((self.layout.trunk_length, None))

    def words(self, x: Tensor) -> Tensor:
        """The next word of a text. Args: x, the last one's embedding `(n, 1, H)`. Returns: `(n, H)`."""
        first = not self._seen
        out = self._continue(torch.cat([self.trunk, x], 1) if first else x)
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        self._ran.append((out.shape[1], self.index))
        return out[:, -1]

    def _some(self, x: Tensor) -> Tensor:
        return x if self.index is None else x[self.index]

    def _all(self, x: Tensor) -> Tensor:
        """Of the rows that are run `(n, ...)`, back among all of them, `(N, ...)`."""
        if self.index is None:
            return x
        return x.new_zeros(len(self.trunk), *x.shape[1:]).index_copy(0, self.index, x)

    def _continue(self, x: Tensor) -> Tensor:
        """Runs the next positions of the step behind those before."""
        seen, end = self._seen, self._seen + x.shape[1]
        if self._keys is None:
            mask = self.layout.continuation_mask(self.past, seen, end, x.device)
            positions = self._start + torch.arange(seen, end, device=x.device)
        else:  # words behind queries that were run in part
            every = torch.arange(self._next, self._next + x.shape[1], device=x.device).expand(len(x), -1)
            tokens = Tokens(every, torch.ones_like(every, dtype=torch.bool), self.layout.step_length)
            self._keys, self._next = self._keys.and_then(tokens), self._next + x.shape[1]
            mask, positions = self.layout.focused_mask(self.past, tokens, self._keys), self._start + every
        return self._run(x, mask, positions)

    def _selected(self, selection: TokenSelection, each: Pass, x: Tensor, first: bool) -> None:
        whole = self._whole(each, self._some(x))
        if len(self.layout.passes) == 1 and self.layout.focuses_trunk:
            out, count = self._by_size(selection, whole)
        else:
            selection = selection if self.index is None else selection.rows(self.index)
            tokens = self.layout.tokens(selection, [each], trunk=first)
            self._keys = tokens if first or self._keys is None else self._keys.and_then(tokens)
            self._next = self.layout.starts[each.name] + each.length
            mask = self.layout.focused_mask(self.past, tokens, self._keys)
            out = tokens.put_back(self._run(tokens.take(whole), mask, self._start + tokens.position))
            count = tokens.valid.sum(1)
        self._ran.append((count, self.index))
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        start = self.layout.starts[each.name]
        self.hidden[each.name] = self._all(out[:, start : start + each.length])

    def _by_size(self, selection: TokenSelection, whole: Tensor) -> tuple[Tensor, Tensor]:
        """The only pass of a Markov step, of which nothing is kept: rows with about as many selected tokens run
        together, so that few positions merely fill a row up. Returns: a step's hidden states `(N, step_length, H)`,
        and how many positions each row ran."""
        least = self.model.compiled_step.least_size
        size = selection.valid.sum(1)
        if len(size) == 1:
            return self._together(whole, selection, self._visible, self._live)
        group = torch.bucketize(size, torch.tensor(GROUP_ENDS, device=size.device))
        out, ran = torch.zeros_like(whole), torch.zeros_like(size)
        for number in group.unique().tolist():
            rows = at_least((group == number).nonzero().squeeze(1), least)
            most = int(size[rows].max())
            most = most and max(most, least)
            some = TokenSelection(selection.index[rows, :most], selection.valid[rows, :most])
            visible = None if self._visible is None else self._visible[rows]
            out[rows], ran[rows] = self._together(whole[rows], some, visible, select_cache(self._live, rows))
        return out, ran

    def _together(
        self, whole: Tensor, selection: TokenSelection, visible: Tensor | None, cache: DynamicCache | None
    ) -> tuple[Tensor, Tensor]:
        self.layout.keep_tensors(whole.device)
        given, sizes = (self.model, whole, selection, visible, cache), [(selection.index, 1), (selection.valid, 1)]
        return self.model.compiled_step(run_selected, *given, rows=len(whole), sizes=sizes)

    def _whole(self, each: Pass, x: Tensor) -> Tensor:
        """A step's embeddings `(n, step_length, H)` with the trunk and one pass filled in."""
        start = self.layout.starts[each.name]
        whole = x.new_zeros(len(x), self.layout.step_length, x.shape[-1])
        whole[:, : self.layout.trunk_length] = self._some(self.trunk)
        whole[:, start : start + each.length] = x
        return whole

    def _run(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self._seen += x.shape[1]
        if self._live is self.cache:
            self.length += x.shape[1]
        given = (self.model, x, mask, positions, self._visible, self._live)
        sizes = _growing(mask, self._live)
        if self._visible is not None and self._visible.shape[1] > self.layout.prefix_length:
            sizes.append((self._visible, 1))
        return self.model.compiled_step(run, *given, rows=len(x), sizes=sizes)


def fill_cache(model: PanModel, belief: Belief, tables: CodeTables) -> Belief:
    """Runs a belief's prefix and history into its cache; returns the belief. Args: tables, see
    `EmbeddingTable.code_tables`."""
    layout, parts = model.layout, []
    if belief.prefix is not None:
        parts.append(model.get_input_embeddings()(belief.prefix))
    for state, action in belief.history:
        embedded = model.embed_state(state, tables)
        parts.append(model.embed_step(state, embedded, model.embed_action(action, tables), tables)[0])
    if not parts:
        belief.cache = None
        return belief
    x = torch.cat(parts, 1)
    steps, total = len(belief.history), x.shape[1]
    trunk = torch.arange(layout.prefix_length + steps * layout.step_length)
    keep = (trunk - layout.prefix_length) % layout.step_length < layout.trunk_length
    keep |= trunk < layout.prefix_length
    mask = layout.window_mask(steps)[keep][:, keep].to(x.device).view(1, 1, total, total)
    if belief.prefix is not None:
        mask = hide_padding(mask, belief.prefix, model.config.pad_token_id)
    belief.cache = DynamicCache()
    model.run_backbone(x, mask, torch.arange(total, device=x.device), belief.cache)
    return belief


# ---- functions that are compiled, see `CompiledStep`


def run(
    model: PanModel, x: Tensor, mask: Tensor, positions: Tensor, visible: Tensor | None, cache: DynamicCache | None
) -> Tensor:
    """Positions of a step `(n, L, H)` behind what is cached."""
    return model.run_backbone(x, _without_padding(mask, visible), positions, cache)


def run_selected(
    model: PanModel, whole: Tensor, selection: TokenSelection, visible: Tensor | None, cache: DynamicCache | None
) -> tuple[Tensor, Tensor]:
    """A step of one pass `(n, step_length, H)`, of which the selected tokens are run; zero elsewhere. And how many
    positions each row ran."""
    layout, past = model.layout, 0 if cache is None else cache.get_seq_length()
    tokens = layout.tokens(selection, layout.passes, trunk=True)
    mask = _without_padding(layout.focused_mask(past, tokens, tokens), visible)
    hidden = model.run_backbone(tokens.take(whole), mask, past + tokens.position, cache)
    return tokens.put_back(hidden), tokens.valid.sum(1)


def _without_padding(mask: Tensor, visible: Tensor | None) -> Tensor:
    """A mask `(1 or n, 1, L, K)` of whose first keys those that are `visible` are seen; see [`Belief.visible`]."""
    if visible is None:
        return mask
    rest = mask.shape[-1] - visible.shape[1]
    return mask & nn.functional.pad(visible, (0, rest), value=True)[:, None, None]


def _growing(mask: Tensor, cache: DynamicCache | None) -> list[tuple[Tensor, int]]:
    """What of a run becomes longer with what is cached."""
    layers = [] if cache is None else [layer for layer in cache.layers if layer.is_initialized]
    return [(mask, 3)] + [(tensor, 2) for layer in layers for tensor in (layer.keys, layer.values)] if layers else []
