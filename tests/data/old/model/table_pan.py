"""The one embedding table: which rows are whose, which of them live, and what is read from them and against them.

Words come first, then a *segment* of rows for each level of each coded part, as the ledger lays them out
(`vocabulary_pan.py`). All of them are reserved from the start; two masks say which are tokens and which ever were.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .adapted_pan import check_table
from .places_pan import CodeTables
from .rows_pan import start_rows


class TableMixin:
    """Rows, segments and live tokens of [`PanModel`]."""

    def build_masks(self) -> None:
        """Which rows are tokens, and which have ever been: a retired code still occurs in what was encoded before."""
        for name in ("live_rows", "born_rows"):
            self.register_buffer(name, torch.zeros(self.config.vocab_size, dtype=torch.bool))

    def reset_pan_parameters(self, _std: float) -> None:
        """What is live at birth: the backbone's words, and of each segment as many codes as its part has."""
        if not self.is_world_model:
            return
        if self.config.text_senses:
            init.zeros_(self.text_start)
        live = torch.arange(self.config.vocab_size) < self.config.text_size
        for part, described in self.config.coded_parts().items():
            for ending, (_, size) in described.segments.items():
                for offset, capacity in self.config.runs(f"{part}.{ending}"):
                    live[offset : offset + min(size, capacity)] = True
                    size = max(0, size - capacity)
        init.copy_(self.live_rows, live)
        init.copy_(self.born_rows, live)

    def embedding_tables(self) -> list[Tensor]:
        """The weights whose rows are tokens: one where input and output are tied, else two."""
        return tables_of(self)

    def segment_rows(self, part: str, level: int | str) -> Tensor:
        """The rows of one level's segment (or of "merges"), `(capacity,)` int64: row `i` is the id of code `i`."""
        runs = [torch.arange(first, first + count) for first, count in self.config.runs(f"{part}.{level}")]
        return torch.cat(runs).to(self.device)

    def code_rows(self, part: str, level: int, codes: Tensor) -> Tensor:
        """Input rows of codes `(...)` of one level of a sense, or of the part `action`: `(..., hidden_size)`."""
        runs = self.config.runs(f"{part}.{level}")
        ids = codes + runs[0][0] if len(runs) == 1 else self.segment_rows(part, level)[codes]
        return check_table(self.get_input_embeddings())(ids)

    def code_table(self, part: str, level: int) -> Tensor:
        """Output rows of one level's segment, `(capacity, hidden_size)`: logits cost its size, not the
        vocabulary's."""
        return self._segment_of(check_table(self.get_output_embeddings()).weight, part, level)

    def live_codes(self, part: str, level: int | str) -> Tensor:
        """Which codes of a segment exist, `(capacity,)` bool."""
        return self._segment_of(self.live_rows, part, level)

    def _segment_of(self, table: Tensor, part: str, level: int | str) -> Tensor:
        """A segment's rows of a table: a view, as long as the segment is one run."""
        runs = self.config.runs(f"{part}.{level}")
        if len(runs) > 1:
            return table[self.segment_rows(part, level)]
        ((first, count),) = runs
        return table[first : first + count]

    def live_words(self) -> Tensor:
        """Which rows are words that exist, `(rows up to the last reserved for words,)` bool: `text_capacity` of them,
        and more where words were given rows behind the codes."""
        runs = self.config.runs("text")
        if len(runs) == 1:
            return self.live_rows[: self.config.text_capacity]
        live = torch.zeros(sum(runs[-1]), dtype=torch.bool, device=self.live_rows.device)
        for first, count in runs:
            live[first : first + count] = self.live_rows[first : first + count]
        return live

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 over words alone, as many as `live_words` has rows, minus infinity where there is no word."""
        head, live = check_table(self.get_output_embeddings()), self.live_words()
        bias = None if getattr(head, "bias", None) is None else head.bias[: len(live)]
        logits = nn.functional.linear(hidden, head.weight[: len(live)], bias)
        return logits.float().masked_fill(~live, -torch.inf)

    def start_code_rows(self, parts: Iterable[str]) -> None:
        """Lets the rows of codes start from what the codes stand for, see `rows_pan`. What the rows had learned is
        lost, so this is for codes that no backbone has been trained on.

        Args:
            parts: names of senses, or `action`; levels that stand for nothing yet stay as they are.
        """
        for part in parts:
            codec = self.senses[part] if part in self.senses else self.action_codec
            for level, (descriptions, described) in enumerate(codec.describe()):
                ids = self.segment_rows(part, level)
                for table in self.embedding_tables():
                    rows = table.detach()[ids]
                    start_rows(rows, descriptions, described, self.config.initializer_range, seed=int(ids[0]))
                    table.detach()[ids] = rows

    def code_tables(self, whole: bool = False) -> CodeTables:
        """What the layers that read or write codes make of every live code; valid until a weight or live mask changes.
        `whole`: of every row reserved for codes, so that growth changes no size, as always in a compiled forward.

        A forward of training and a call of `simulate` make them once and look codes up, instead of multiplying the row
        of each code they meet."""
        sizes, rows, places, levels, glances = {}, {}, {}, {}, {}
        for part, described in self.config.coded_parts().items():
            if part == "action" and described.kind == "discrete":
                continue
            live = [self.live_codes(part, level) for level in range(described.num_levels)]
            born = [self._segment_of(self.born_rows, part, level) for level in range(described.num_levels)]
            sizes[part] = [len(rows) if whole else _extent(rows) for rows in born]
            rows[part] = [
                self.code_rows(part, level, torch.arange(size, device=self.device))
                for level, size in enumerate(sizes[part])
            ]
            embedding = self.action_embedding if part == "action" else self.state_embeddings[part]
            places[part] = embedding.table(rows[part])
            if part in self.senses:
                levels[part] = [
                    readout.tables(rows[part], self.code_table(part, level)[:size], live[level][:size])
                    for level, (readout, size) in enumerate(zip(self.readouts[part], sizes[part], strict=True))
                ]
            if part in self.glances:
                glances[part] = self.glances[part].tables(rows[part][0])
        return CodeTables(sizes, places, levels, glances)

    def _only_live(self, logits: Tensor) -> Tensor:
        if not self.is_world_model:
            return logits
        return logits.masked_fill(~self.live_rows, torch.finfo(logits.dtype).min)


def check_room(config) -> None:
    """Raises ValueError where the backbone's table is too small for the words and codes of a configuration."""
    needed = max(first + count for name in ["text", *config.segments] for first, count in config.runs(name))
    if config.vocab_size < needed:
        raise ValueError(
            f"The backbone's table has {config.vocab_size} rows; words and codes need {needed}. Make the model with "
            f"PanModel.from_backbone, which resizes it, or set `text_config.vocab_size` to {needed} or more."
        )


def tables_of(model: PreTrainedModel) -> list[Tensor]:
    """The embedding table and, where it is not the same, the one that is read out against."""
    tables = [check_table(table).weight for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    return list({id(table): table for table in tables}.values())


def _extent(born: Tensor) -> int:
    """Rows of a segment up to the last one born; all of them in a compiled forward, which growth must not change."""
    return len(born) if torch.compiler.is_compiling() else int(born.nonzero()[-1]) + 1
