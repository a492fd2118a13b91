"""One step's runs of the backbone: pass by pass behind what is cached, whole or at the places in focus alone.

Shapes: N = rows of the belief, n = rows that are still run, H = backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .belief_pan import Belief, fork_cache, select_cache
from .focus_pan import Focus
from .layout_pan import Tokens

GROUP_ENDS = (0, 2, 4, 8, 16, 32, 64, 128)  # rows that look at so many places at most are run together


class BackboneRun:
    """Runs the backbone for one step of simulation; the trunk goes along with the first pass.

    Args:
        model ([`PanModel`]): whose backbone.
        belief ([`Belief`]): of N rows, which it leaves as it is.
        trunk `(N, trunk_length, H)`: embeddings of the state and the action.
        focus (`Focus`, *optional*): the places looked at; all by default.

    Attributes:
        hidden: by pass `(N, length, H)`, zero where nothing was run, and "action" `(N, H)`.
        cache: with the trunk's keys and values behind those of the belief; None where nothing is to be kept.
        length (`int`): positions of this step in `cache`.
        index `(n,)`: the rows that are still run; None for all.
        ran: by pass, how many positions were run, of all rows alike or `(n,)`.
    """

    def __init__(self, model, belief: Belief, trunk: Tensor, focus=None):
        self.model, self.layout, self.trunk, self.focus = model, model.layout, trunk, focus
        self.hidden: dict[str, Tensor] = {}
        self.ran: dict[str, Tensor | int] = {}
        self.length, self.index, self._seen = 0, None, 0
        self._next = 0  # where words go on behind queries that were run in part
        keeps = belief.cache is not None or model.config.context_steps > 1 or len(self.layout.passes) > 1
        self.cache = self._live = fork_cache(belief.cache) if keeps else None
        self.past = 0 if self.cache is None else self.cache.get_seq_length()
        # which positions of the prefix are words `(N, prefix_length)`; nobody looks at padding
        self._words = None if belief.prefix is None else belief.prefix != model.config.pad_token_id
        self._keys: Tokens | None = None

    @property
    def rows(self) -> int:
        return len(self.trunk) if self.index is None else len(self.index)

    def keep(self, index: Tensor) -> None:
        """From here on only these rows are run, `(n,)` int64, some of those that still were."""
        if len(index) == self.rows:
            return
        inside = index if self.index is None else torch.searchsorted(self.index, index)
        self._live = select_cache(self._live, inside)
        self._words = None if self._words is None else self._words[inside]
        if self._keys is not None:
            self._keys = Tokens(self._keys.position[inside], self._keys.valid[inside], self._keys.length)
        self.index = index

    def queries(self, each, x: Tensor) -> None:
        """One pass of levels. Args: x, its queries `(N, each.length, H)`."""
        first = not self._seen
        if self.focus is not None:
            self._focused(each, x, first)
            return
        x = self._some(x)
        out = self._continue(torch.cat([self.trunk, x], 1) if first else x)
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        self.hidden[each.name] = self._all(out[:, -each.length :])
        self.ran[each.name] = out.shape[1]

    def lead(self) -> int:
        """Runs the trunk alone, for a choice to be made before there is anything to read. Returns: its length."""
        self.hidden["action"] = self._continue(self.trunk)[:, -1]
        return self.layout.trunk_length

    def words(self, each, x: Tensor) -> Tensor:
        """The next word of a text. Args: x, the last one's embedding `(n, 1, H)`. Returns: `(n, H)`."""
        first = not self._seen
        out = self._continue(torch.cat([self.trunk, x], 1) if first else x)
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        self.ran[each.name] = self.ran.get(each.name, 0) + out.shape[1]
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
            positions = torch.arange(self.past + seen, self.past + end, device=x.device)
        else:  # words behind queries that were run in part
            every = torch.arange(self._next, self._next + x.shape[1], device=x.device).expand(len(x), -1)
            tokens = Tokens(every, torch.ones_like(every, dtype=torch.bool), self.layout.step_length)
            self._keys, self._next = self._keys.and_then(tokens), self._next + x.shape[1]
            mask, positions = self.layout.focused_mask(self.past, tokens, self._keys), self.past + every
        return self._run(x, mask, positions)

    def _focused(self, each, x: Tensor, first: bool) -> None:
        whole = self._whole(each, self._some(x))
        if len(self.layout.passes) == 1 and self.layout.focuses_trunk:
            out, self.ran[each.name] = self._by_size(each, whole)
        else:
            focus = self.focus if self.index is None else self.focus.rows(self.index)
            tokens = self.layout.tokens(focus, [each], trunk=first)
            self._keys = tokens if first else self._keys.and_then(tokens)
            self._next = self.layout.starts[each.name] + each.length
            mask = self.layout.focused_mask(self.past, tokens, self._keys)
            out = tokens.put_back(self._run(tokens.take(whole), mask, self.past + tokens.position))
            self.ran[each.name] = tokens.valid.sum(1)
        if first:
            self.hidden["action"] = out[:, self.layout.trunk_length - 1]
        start = self.layout.starts[each.name]
        self.hidden[each.name] = self._all(out[:, start : start + each.length])

    def _by_size(self, each, whole: Tensor) -> tuple[Tensor, Tensor]:
        """The only pass of a Markov step, of which nothing is kept: rows that look at about as much run together, so
        that few positions merely fill a row up. Returns: a step's hidden states `(N, step_length, H)`, and how many
        positions each row ran."""
        size = self.focus.valid.sum(1)
        if len(size) == 1:
            return self._together(whole, self.focus, self._words, self._live)
        group = torch.bucketize(size, torch.tensor(GROUP_ENDS, device=size.device))
        out, ran = torch.zeros_like(whole), torch.zeros_like(size)
        for number in group.unique().tolist():
            rows = self.model.pieces.at_least_two((group == number).nonzero().squeeze(1))
            most = int(size[rows].max())
            most = most and max(most, self.model.pieces.least_size)
            focus = Focus(self.focus.index[rows, :most], self.focus.valid[rows, :most])
            words = None if self._words is None else self._words[rows]
            out[rows], ran[rows] = self._together(whole[rows], focus, words, select_cache(self._live, rows))
        return out, ran

    def _together(self, whole: Tensor, focus: Focus, words: Tensor | None, cache) -> tuple[Tensor, Tensor]:
        self.layout.keep_tensors(whole.device)
        given, sizes = (self.model, whole, focus, words, cache), [(focus.index, 1), (focus.valid, 1)]
        return self.model.pieces(run_in_focus, *given, rows=len(whole), sizes=sizes)

    def _whole(self, each, x: Tensor) -> Tensor:
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
        given = (self.model, x, mask, positions, self._words, self._live)
        return self.model.pieces(run, *given, rows=len(x), sizes=_growing(mask, self._live))


# ---- pieces of a step, see `pieces_pan`


def run(model, x: Tensor, mask: Tensor, positions: Tensor, words: Tensor | None, cache) -> Tensor:
    """Positions of a step `(n, L, H)` behind what is cached."""
    return model.run_backbone(x, _without_padding(mask, words), positions, cache)


def run_in_focus(model, whole: Tensor, focus: Focus, words: Tensor | None, cache) -> tuple[Tensor, Tensor]:
    """A step of one pass `(n, step_length, H)` at the places in focus; zero elsewhere. And how many positions each row
    ran."""
    layout, past = model.layout, 0 if cache is None else cache.get_seq_length()
    tokens = layout.tokens(focus, layout.passes, trunk=True)
    mask = _without_padding(layout.focused_mask(past, tokens, tokens), words)
    found = model.run_backbone(tokens.take(whole), mask, past + tokens.position, cache)
    return tokens.put_back(found), tokens.valid.sum(1)


def _without_padding(mask: Tensor, words: Tensor | None) -> Tensor:
    """A mask `(1 or n, 1, L, K)` whose first keys are the prefix, of which `words` are seen."""
    if words is None:
        return mask
    return mask & nn.functional.pad(words, (0, mask.shape[-1] - words.shape[1]), value=True)[:, None, None]


def _growing(mask: Tensor, cache: DynamicCache | None) -> list[tuple[Tensor, int]]:
    """What of a run becomes longer with what is cached."""
    layers = [] if cache is None else [layer for layer in cache.layers if layer.is_initialized]
    return [(mask, 3)] + [(tensor, 2) for layer in layers for tensor in (layer.keys, layer.values)] if layers else []
