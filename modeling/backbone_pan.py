"""The language model in the middle: how it is run, which ones fit, and how its rows for codes begin.

A step of the world is laid out in its sequence with a mask and positions of our own (`layout_pan.py`): states look at
themselves both ways, and queries stand between two states that must not notice them. Most causal language models take
both. Models without attention (Mamba), or whose attention reads distances off the order of the keys (ALiBi), do not,
and would quietly learn another world than the one they simulate: whether a backbone fits is tried out, not looked up.

Shapes: B = batch, N = rows of a belief, n = rows that are still run, L = positions, H = backbone width.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from .embedding_pan import CodeTables, extent, tables_of
from .layout_pan import Pass, Tokens, TokenSelection, additive, at_least, hide_padding
from .state_pan import Belief, State, fork_cache, select_cache
from .validation_pan import truth

if TYPE_CHECKING:
    from .modeling_pan import PanModel

# Of the spread of the hidden states: rounding, not another position. Even untrained attention is above it in float32.
TOLERANCE, TOLERANCE_HALF = 1e-4, 0.05


@functools.cache
def cache_argument(kind: type[nn.Module]) -> str:
    """The name of the cache in a model's forward: `cache` in newer Transformers, `past_key_values` in older ones and
    in code from the Hub."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class TrunkCall:
    """How a kind of language model names its cache, and the kinds of layers that want a mask by name, if any do. It is
    made once, because looking it up would break the graph of a compiled step."""

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
    tolerance = TOLERANCE if backbone.dtype == torch.float32 else TOLERANCE_HALF
    if float((with_hidden - without).abs().max() / spread) > tolerance:
        raise ValueError(_misfit(name, "a position that is hidden still moves or reaches another"))
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
    with_hidden = run_trunk(backbone, call, three, mask, positions, None)[0, [0, 2]].float()
    pairs = torch.stack([torch.stack([first, last]), torch.stack([first, other])])
    without, changed = run_trunk(backbone, call, pairs, mask[..., :2, [0, 2]], positions[:2], None).float()
    return with_hidden, without, changed


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
        cache: with the trunk's keys and values behind those of the belief; None where nothing has to be kept.
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
        passes = self.layout.passes
        once = len(passes) == 1 and bool(passes[0].levels)  # the pass of a text runs once a word
        # without a cache the only pass of a Markov step runs rows of about one size together, see `_by_size`
        keeps = belief.cache is not None or model.config.context_steps > 1 or not once
        self.cache = self._live = fork_cache(belief.cache) if keeps else None
        self.past, self._start = belief.num_cached, belief.next_position()
        # a configuration made by hand may name no padding, and then no id is
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
        x = self._some(x)
        if self.selection is None:
            out = self._continue(x)[:, -each.length :]
        else:
            out = self._selected(self.selection, each, x)
        if self.index is not None:
            out = out.new_zeros(len(self.trunk), *out.shape[1:]).index_copy(0, self.index, out)
        self.hidden[each.name] = out

    def lead(self) -> None:
        """Runs the trunk alone, where the switch chooses before any pass, or nothing is read from one."""
        self._continue(self.trunk[:, :0])

    def words(self, x: Tensor) -> Tensor:
        """The next word of a text. Args: x, the last one's embedding `(n, 1, H)`. Returns: `(n, H)`."""
        return self._continue(x)[:, -1]

    def _some(self, x: Tensor) -> Tensor:
        return x if self.index is None else x[self.index]

    def _note(self, out: Tensor, count: Tensor | int) -> None:
        """Counts positions that were run, and keeps the hidden state of the action if the trunk was among them."""
        self._ran.append((count, self.index))
        if "action" not in self.hidden:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]

    def _continue(self, x: Tensor) -> Tensor:
        """Runs the next positions of the step behind those before; first the trunk."""
        x = x if self._seen else torch.cat([self.trunk, x], 1)
        seen, end = self._seen, self._seen + x.shape[1]
        if self._keys is None:
            mask = self.layout.continuation_mask(self.past, seen, end, x.device)
            positions = self._start + torch.arange(seen, end, device=x.device)
        else:  # words behind queries that were run in part
            every = torch.arange(self._next, self._next + x.shape[1], device=x.device).expand(len(x), -1)
            tokens = Tokens(every, torch.ones_like(every, dtype=torch.bool), self.layout.step_length)
            self._keys, self._next = self._keys.and_then(tokens), self._next + x.shape[1]
            mask, positions = self.layout.focused_mask(self.past, tokens, self._keys), self._start + every
        out = self._run(x, mask, positions)
        self._note(out, x.shape[1])
        return out

    def _selected(self, selection: TokenSelection, each: Pass, x: Tensor) -> Tensor:
        """Runs a pass, with the trunk before if it is the first, for a selection of tokens: `(n, each.length, H)`."""
        start = self.layout.starts[each.name]
        end, whole = start + each.length, x.new_zeros(len(x), self.layout.step_length, x.shape[-1])
        whole[:, : self.layout.trunk_length], whole[:, start:end] = self._some(self.trunk), x
        if len(self.layout.passes) == 1 and self.layout.focuses_trunk:
            out, count = self._by_size(selection, whole)
        else:
            selection = selection if self.index is None else selection.rows(self.index)
            tokens = self.layout.tokens(selection, [each], trunk=not self._seen)
            self._keys = tokens if self._keys is None else self._keys.and_then(tokens)
            self._next = end
            mask = self.layout.focused_mask(self.past, tokens, self._keys)
            out = tokens.put_back(self._run(tokens.take(whole), mask, self._start + tokens.position))
            count = tokens.valid.sum(1)
        self._note(out, count)
        return out[:, start:end]

    def _by_size(self, selection: TokenSelection, whole: Tensor) -> tuple[Tensor, Tensor]:
        """The only pass of a Markov step, of which nothing is kept: rows with about as many selected tokens run
        together, so that few positions merely fill a row up. Returns: a step's hidden states `(N, step_length, H)`,
        and how many positions each row ran."""
        least = self.model.compiled_step.least_size
        size = selection.valid.sum(1)
        if len(size) == 1:  # not repeated, as `at_least` does below: compiled, one row has a graph of its own
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
        inputs, sizes = (self.model, whole, selection, visible, cache), [(selection.index, 1), (selection.valid, 1)]
        return self.model.compiled_step(run_selected, *inputs, rows=len(whole), sizes=sizes)

    def _run(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self._seen += x.shape[1]
        if self._live is self.cache:
            self.length += x.shape[1]
        inputs = (self.model, x, mask, positions, self._visible, self._live)
        # lengths that grow with the cache are marked, or each step of a rollout would be another graph
        layers = [] if self._live is None else [layer for layer in self._live.layers if layer.is_initialized]
        sizes = [(mask, 3)] if layers else []
        sizes += [(tensor, 2) for layer in layers for tensor in (layer.keys, layer.values)]
        if self._visible is not None and self._visible.shape[1] > self.layout.prefix_length:
            sizes.append((self._visible, 1))
        return self.model.compiled_step(run, *inputs, rows=len(x), sizes=sizes)


def embed_step(
    model: PanModel, state: State, embedded_state: Tensor, action: Tensor, tables: CodeTables | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The trunk of one step, from a state `(N,)`, the same embedded, and actions that are rows of the vocabulary by
    now, `(N, action_length, H)`: `(N, trunk_length, H)`, and by sense the logit of a change of each token `(N, P)`.
    The action is told the gist of the state. Args: tables, from `code_tables`, if they are at hand."""
    tables = tables or model.table.code_tables()
    change, gist = {}, 0.0
    for name, predictor in model.glances.items():
        start = model.layout.token_starts[name]
        tokens = embedded_state[:, start : start + predictor.sense.num_state_tokens]
        change[name], part = predictor(tokens, state.codes[name][0], tables.change[name], action.mean(1))
        gist = gist + part.unsqueeze(1)
    return torch.cat([embedded_state, action + gist if change else action], 1), change


def embed_queries(
    model: PanModel, one_pass: Pass, embedded_state: Tensor, chosen: dict[str, list[Tensor]], tables: CodeTables
) -> Tensor:
    """Queries of a pass of levels, `(N, one_pass.length, hidden_size)`: what each token is, what it holds now, and the
    coarser codes already chosen for it (`chosen[name]`, `(N, n_l)` a level)."""
    parts, start, level = [], 0, one_pass.levels[0]
    for name, sense in model.config.coded_senses.items():
        now = embedded_state[:, start : start + sense.num_state_tokens]
        start += sense.num_state_tokens
        if level >= sense.num_levels:
            continue
        query = now + model.queries[name][level]
        coarser = chosen.get(name, [])[:level]
        if coarser:
            query = query + model.state_embeddings[name].codes(coarser, tables.embeddings[name], tables.sizes[name])
        parts.append(query)
    return torch.cat(parts, 1)


def fill_cache(model: PanModel, belief: Belief, tables: CodeTables) -> Belief:
    """Runs a belief's prefix and history into its cache; returns the belief. Args: tables, see
    `EmbeddingTable.code_tables`."""
    layout, parts = model.layout, []
    if belief.prefix is not None:
        parts.append(model.get_input_embeddings()(belief.prefix))
    for state, action in belief.history:
        embedded = model.embed_state(state, tables)
        parts.append(embed_step(model, state, embedded, model.embed_action(action, tables), tables)[0])
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
    cache = DynamicCache()
    model.run_backbone(x, mask, torch.arange(total, device=x.device), cache)
    belief.cache = cache  # when it is whole: where the backbone fails, or another thread asks, there is no half of it
    return belief


@torch.no_grad()
def filled_cache(belief: Belief) -> DynamicCache | None:
    """Fills a belief's cache. A belief that is made with this function as its cache has it filled on first use."""
    return fill_cache(belief.model, belief, belief.model.table.code_tables()).cache


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


# ---- The world model as a language model: words in, words out, as its backbone says them.
#
# Words and codes are rows of one table, so a plain softmax over it would give codes a share of every next word,
# trained or not. So codes are possible where they are asked for (`codes_in_text`), and else the head reads the rows
# of words alone: the product of the backbone's own words has the shape it has in the bare backbone, and therefore its
# bits.
#
# Shapes: B = batch, L = positions, V = rows of the table.


def words_asked_for(model: PanModel, codes_in_text: bool | None) -> Tensor | None:
    """Which rows are words, where a language model of words alone is asked for; None where every row counts."""
    with_codes = model.config.codes_in_text if codes_in_text is None else truth("codes_in_text", codes_in_text)
    return model.table.active_words() if model.is_world_model and not with_codes else None


def words_alone(model: PanModel, words: Tensor) -> tuple[PreTrainedModel, int]:
    """The backbone with a head of its first rows, as far as words go, and how many rows these are.

    The backbone itself stays as it is, since another thread may be running it. A head that an adapter, a quantiser or
    a library that moves weights has changed stays whole, and so does any head while a graph is compiled.

    Args:
        words `(rows,)` bool: see `EmbeddingTable.active_words`.
    """
    backbone, num_words = model.language_model, extent(words)
    head = backbone.get_output_embeddings()
    names = [name for name, module in backbone._modules.items() if module is head]
    is_plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    is_plain = is_plain and not (head._forward_pre_hooks or head._forward_hooks)
    if torch.compiler.is_compiling() or not (is_plain and names):
        return backbone, num_words
    view = copy.copy(backbone)
    narrow = _WordHead(head, model.config.text_size, num_words, len(words))
    view._modules = backbone._modules | dict.fromkeys(names, narrow)
    return view, num_words


class _WordHead(nn.Module):
    """The first rows of a head. Words that the vocabulary has grown by are a product of their own, with those that
    are still reserved: growth changes no older logit by a bit.

    Args:
        head: whose rows.
        known (`int`): words of the bare backbone.
        num_words (`int`): rows that are read out.
        reserved (`int`): rows up to the last reserved for words.
    """

    def __init__(self, head: nn.Linear, known: int, num_words: int, reserved: int):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.known, self.num_words, self.reserved = known, num_words, reserved

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(B, L, H)` -> `(B, L, num_words)`."""
        logits = self._product(hidden_states, slice(self.known))
        if self.num_words == self.known:
            return logits
        grown = self._product(hidden_states, slice(self.known, self.reserved))
        return torch.cat([logits, grown[..., : self.num_words - self.known]], -1)

    def _product(self, hidden_states: Tensor, rows: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[rows]
        return nn.functional.linear(hidden_states, self.weight[rows], bias)


def check_labels(labels: Tensor | None, words: Tensor) -> None:
    """Raises ValueError unless labels (below 0: none) are among `words` `(rows,)` bool. Compiled, nothing is read."""
    if labels is None or torch.compiler.is_compiling():
        return
    ids = labels[labels >= 0].to(words.device)
    wrong = ids[(ids >= len(words)) | ~words[ids.clamp(max=len(words) - 1)]]
    if len(wrong):
        raise ValueError(
            f"Labels must be words, got id {int(wrong[0])}, which is a code or no token. This is the loss of a "
            "language model of words; where codes are predicted too, give `codes_in_text=True`, or the objective "
            "'sentences'."
        )


class WordGenerationMixin(GenerationMixin):
    """`generate` with logits of words alone: their number is the backbone's, so a seed draws what it draws there."""

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, **kwargs):
        return {"over_all_rows": False} | super().prepare_inputs_for_generation(*args, **kwargs)

    @functools.wraps(GenerationMixin.compute_transition_scores)
    def compute_transition_scores(self, sequences, scores, *args, **kwargs):
        rows = self.config.vocab_size  # what Transformers takes each row of scores for
        scores = [nn.functional.pad(each, (0, rows - each.shape[-1]), value=-torch.inf) for each in scores]
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)
