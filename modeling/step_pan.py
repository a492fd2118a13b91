"""One imagined step: a belief and an action in, a [`Transition`] out. Everything that predicts goes through here.

The current state, the action and the queries of the first pass share one forward of the backbone. Blocks are then
decoded in their order, each from the pass that it belongs to; what is not trunk is dropped from the cache again. Which
blocks, in which rows, at which state tokens is the matter of a [`BlockPlan`]: a whole step is one plan among others.

Shapes: N = rows, H = backbone width, K = blocks, P = state tokens of one sense or of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import DynamicCache

from .backbone_pan import BackboneRun, embed_queries, embed_step, fill_cache
from .blocks_pan import Block, CodeSampler, StepDraft, entropy_of
from .effort_pan import ALL, BlockPlan, ComputeModel, Cost
from .embedding_pan import CodeTables
from .layout_pan import TokenSelection
from .readout_pan import scalar_features
from .state_pan import Actions, Belief, State, action_tensors, as_action
from .validation_pan import real, whole

if TYPE_CHECKING:
    from .modeling_pan import PanModel


@dataclass
class Transition:
    """The outcome of one step, for N rows.

    Args:
        belief: after the step.
        reward `(N,)`: expected; continue_prob `(N,)`: probability that the episode goes on; None if not asked for.
        log_prob `(N,)`: of the codes and words, in nats at temperature 1.
        hidden: by pass `(N, length, H)`, the backbone's hidden states, and "action" `(N, H)`.
        trunk `(N, trunk_length, H)`: the state before and the action, embedded.
        logits: by sense, of each level `(N, n, K)`, if they were asked for.
        log_probs: by sense `(N,)`, the part of `log_prob` that is that of its codes or words, if a target was scored.
        entropy: by sense `(N,)`, of what was predicted, in nats at temperature 1, if it was asked for; of each code or
            word given those before it.
        shifts: by sense and level `(N, n, code_dim)`, what leads from the vectors of the codes to the expected ones.
        conditions: by sense `(N, P, C)`, the condition of its latent head, if latents are left to whoever decodes.
        switch `(N, K)` bool: blocks predicted; focus `(N, P)` bool: state tokens predicted; cost, of the step. None
            for a whole step.
        duration (`int`): in steps; a step of a macro-action takes several.
    """

    belief: Belief
    reward: Tensor | None
    continue_prob: Tensor | None
    log_prob: Tensor
    hidden: dict[str, Tensor]
    trunk: Tensor
    logits: dict[str, list[Tensor]]
    shifts: dict[str, list[Tensor]]
    conditions: dict[str, Tensor]
    switch: Tensor | None = None
    focus: Tensor | None = None
    cost: Cost | None = None
    duration: int = 1
    log_probs: dict[str, Tensor] = field(default_factory=dict)
    entropy: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The state after the step."""
        return self.belief.state


class StepPredictor:
    """Predicts or scores steps of a world model, one a call.

    It holds what all steps of a rollout share: the tables of codes, the generators and the last state, embedded. So it
    is made anew when a weight or the vocabulary has changed.

    Args:
        model ([`PanModel`]): that predicts.
        temperature (`float`): of sampled codes and words; 0 takes the likeliest.
        seed (`int`, *optional*): makes draws reproducible; codes and latents have generators of their own.

    Raises:
        ValueError: a temperature that is no finite number of at least 0, or a seed that is no whole number.
    """

    def __init__(self, model: PanModel, temperature: float = 1.0, seed: int | None = None):
        self.model, seed = model, as_seed(seed)
        temperature = real("temperature", temperature, 0)
        self.sampler = CodeSampler(temperature, _generator(seed, model.device), model.device)
        # a generator of their own, of latents and of the switch: codes do not depend on whether latents are drawn
        self.generator = _generator(seed, model.device)
        compiled = model.compiled_step
        self.tables = compiled(whole_tables, model) if compiled.is_compiled else model.table.code_tables()
        # the last state, embedded with its latents, and without as outcomes see it, as far as that is known
        self._embedded: tuple[State, Tensor, Tensor | None] | None = None

    def step(
        self,
        belief: Belief,
        action: Tensor | Actions,
        target: State | None = None,
        blocks: BlockPlan = ALL,
        keeps_logits: bool = False,
        has_outcome: bool = True,
        keeps_entropy: bool = False,
    ) -> Transition:
        """One step.

        Args:
            belief: of N rows; it is left as it was.
            action `(N, ...)`: ints, floats, or ids of a text; by name where it has several parts.
            target: the true next state `(N,)`, scored instead of drawn.
            blocks: what is predicted; every discrete block everywhere by default.
            keeps_logits (`bool`): fill in `Transition.logits`.
            has_outcome (`bool`): fill in `Transition.reward` and `continue_prob`.
            keeps_entropy (`bool`): fill in `Transition.entropy`, of a whole step.

        Raises:
            ValueError: actions or targets of another number of rows.
        """
        assert not keeps_entropy or blocks is ALL, "what is carried over has no distribution"
        counts = {"action": len(action), "target": len(belief if target is None else target.tensors()[0])}
        if wrong := {name: count for name, count in counts.items() if count != len(belief)}:
            raise ValueError(f"A step needs as many rows of everything as of its belief, {len(belief)}; got {wrong}.")
        draft = self._begin(belief, action, target, blocks, keeps_logits or keeps_entropy)
        log_probs: dict[str, Tensor] = {}
        for number, block in enumerate(self.model.blocks):
            self.run_pass(draft, block, blocks)
            rows = blocks.rows(number, draft)
            if rows is not None and len(rows) == 0:
                block.carry(draft)
                continue
            before = draft.log_prob
            block.predict(draft, rows)
            if target is not None and block.is_discrete:
                log_probs[block.sense] = log_probs.get(block.sense, 0) + draft.log_prob - before
            blocks.note(number, rows, draft)
        transition = self._finish(draft, belief, action, blocks, has_outcome)
        transition.log_probs = log_probs
        if keeps_entropy:
            transition.entropy = entropies(draft)
        return transition

    def _begin(
        self, belief: Belief, action: Tensor | Actions, target: State | None, blocks: BlockPlan, keeps_logits: bool
    ) -> StepDraft:
        """A draft of nothing yet."""
        model, state, history = self.model, belief.state, belief.history
        if self._embedded is None or self._embedded[0] is not state:  # else the step before has embedded it
            embedded = model.embed_state(state, self.tables)
            self._embedded = (state, embedded, None if state.latents else embedded)
        embedded = self._embedded[1]
        inputs = (model, state, embedded, action_tensors(action), self.tables)
        trunk, change = model.compiled_step(begin, *inputs, rows=len(embedded))
        has_before = None if belief.ages is None else belief.ages > 0
        selection = blocks.select(model, change)
        draft = StepDraft(
            model=model,
            current=state,
            target=target,
            tables=self.tables,
            sampler=self.sampler,
            generator=self.generator,
            run=BackboneRun(model, belief, trunk, selection),
            embedded=embedded,
            trunk=trunk,
            numbers=scalar_features(model, state, history[-1][0] if history else None, action, has_before),
            keeps_logits=keeps_logits,
            keeps_shifts=blocks.leaves_latents or not all(b.is_discrete for b in model.blocks if blocks.wants(b)),
            seen=None if selection is None else selection.mask(model.layout.num_state_tokens),
        )
        blocks.begin(draft)
        return draft

    def run_pass(self, draft: StepDraft, block: Block, blocks: BlockPlan) -> None:
        """Runs the pass that a block is read from, once, for the rows that want it or something behind it."""
        if block.number <= draft.last_pass:
            return
        each, is_first = self.model.layout.passes[block.number], draft.last_pass < 0
        if not is_first and not blocks.goes_on(block, draft):
            return
        draft.last_pass = block.number
        if each.levels:
            draft.run.queries(each, embed_queries(self.model, each, draft.embedded, draft.codes, self.tables))
            draft.tokens = self.model.layout.split_tokens(each, draft.run.hidden[each.name], draft.trunk)
        elif is_first and (blocks.is_asked or not blocks.wants(block)):
            draft.run.lead()  # without a text's first word, which is not read yet, or not at all
        if is_first:
            blocks.note(-1, None, draft)

    def _finish(
        self, draft: StepDraft, belief: Belief, action: Tensor | Actions, blocks: BlockPlan, has_outcome: bool
    ) -> Transition:
        model, state, run = self.model, draft.state(), draft.run
        leaves_latents = blocks.leaves_latents and draft.target is None
        conditions = {name: draft.latent_condition(name) for name in model.latent_heads if leaves_latents}
        reward = continue_prob = None
        if has_outcome:
            assert self._embedded is not None  # the state before
            before = self._embedded[2]
            before = model.embed_state(belief.state.without_latents(), self.tables) if before is None else before
            inputs = (model, before, state.without_latents(), run.hidden["action"], self.tables)
            after, reward, continue_prob = model.compiled_step(predict_outcome, *inputs, rows=draft.num_rows)
            self._embedded = (state, model.embed_state(state, self.tables) if state.latents else after, after)
        transition = Transition(
            belief=self._after(belief, action, state, run),
            reward=reward,
            continue_prob=continue_prob,
            log_prob=draft.log_prob,
            hidden=run.hidden,
            trunk=draft.trunk,
            logits=draft.logits,
            shifts=draft.shifts,
            conditions=conditions,
        )
        if blocks is not ALL:
            chosen, shape = blocks.chosen(draft), (draft.num_rows, model.layout.num_state_tokens)
            everywhere = torch.ones(shape, dtype=torch.bool, device=draft.trunk.device)
            transition.switch, transition.focus = chosen, everywhere if draft.seen is None else draft.seen
            transition.cost = model.compute_model.cost(model, chosen, draft.seen, run.positions())
        return transition

    def _after(self, belief: Belief, action: Tensor | Actions, state: State, run: BackboneRun) -> Belief:
        """The belief after a step: queries leave the cache, the trunk stays if there is room for it."""
        room = self.model.config.context_steps - 1
        if room == 0:
            return Belief(state, [], belief.prefix, belief.cache, self.model)
        history = [*belief.history, (belief.state, action)]
        ages = None if belief.ages is None else belief.ages + 1
        after = Belief(state, history, belief.prefix, run.cache, self.model, ages=ages)
        if len(history) > room and ages is None:
            return self._renewed(after)
        assert run.cache is not None  # there is room for one
        run.cache.crop(-(run.length - self.model.layout.trunk_length))
        if len(history) <= room:
            return after
        assert ages is not None  # or it is renewed
        # rows that hold too much are encoded again by themselves, as they would be alone
        full, others = (((ages > room) == is_full).nonzero().squeeze(1) for is_full in (True, False))
        order = torch.cat([full, others]).argsort()
        return Belief.cat([self._renewed(after.select(full)), after.select(others)]).select(order)

    def _renewed(self, belief: Belief) -> Belief:
        """A belief that holds more than there is room for: it keeps the newer half and encodes it again. The cost is
        spread over the steps until it is full anew."""
        newer = belief.history[-max(1, self.model.config.context_steps // 2) :]
        return fill_cache(self.model, Belief(belief.state, newer, belief.prefix, None, self.model), self.tables)


def entropies(draft: StepDraft) -> dict[str, Tensor]:
    """By sense, the entropy of what a draft that keeps its logits predicts, `(N,)` nats."""
    parts = {name: [entropy_of(level) for level in levels] for name, levels in draft.logits.items()}
    return {name: torch.stack(levels).sum(0) for name, levels in parts.items() if levels} | draft.word_entropy


@torch.no_grad()
def measure_compute(model: PanModel) -> ComputeModel:
    """Counts the operations of one row of a whole step, while the model scores a state of zeros block by block."""
    device, base = model.device, model.language_model.base_model
    # operations of a compiled function cannot be counted, and flex attention is always compiled
    compiled, model.compiled_step = model.compiled_step, CompiledStep()
    attention = model.config.text_config._attn_implementation
    if attention == "flex_attention":
        model.config.text_config._attn_implementation = "sdpa"
    try:
        predictor, draft = _blank_step(model)
        # draws of latents must not move the caller's generators
        with _flop_counter() as counter, torch.random.fork_rng([device] if device.type == "cuda" else []):

            def taken() -> tuple[int, int]:
                """Operations so far: all but the backbone's, and the backbone's."""
                backbone = sum(counter.get_flop_counts().get(type(base).__name__, {}).values())
                return counter.get_total_flops() - backbone, backbone

            embed_step(model, draft.current, draft.embedded, draft.trunk[:, model.layout.state_length :], draft.tables)
            before, blocks = taken()[0], {}
            for block in model.blocks:
                predictor.run_pass(draft, block, ALL)
                start = taken()[0]
                block.predict(draft, None)
                blocks[block.name] = float(taken()[0] - start)
            start, backbone = taken()
            predict_outcome(model, draft.embedded, draft.current, draft.run.hidden["action"], draft.tables)
            fixed = float(before + taken()[0] - start)
    finally:
        model.compiled_step, model.config.text_config._attn_implementation = compiled, attention
    calls = {f"{name}.latents": head.num_calls for name, head in model.latent_heads.items()}
    token = backbone / model.layout.step_length
    return ComputeModel(token, blocks, fixed, fixed + sum(blocks.values()) + backbone, calls)


def _flop_counter() -> FlopCounterMode:
    """Counts attention on a CPU too, which PyTorch 2.13 leaves out."""

    def count(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: count})


def _blank_step(model: PanModel) -> tuple[StepPredictor, StepDraft]:
    """The draft of a step of one row, from a state of zeros to the same, read out against every row reserved for
    codes; and its predictor."""
    config, device = model.config, model.device

    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(1, *shape, dtype=dtype, device=device)

    codes = {
        name: [zeros(sense.num_state_tokens * count) for count in sense.codes_per_token]
        for name, sense in config.coded_senses.items()
    }
    state = State(codes, {}, {name: zeros(sense.max_length) for name, sense in config.text_senses.items()})
    prefix = zeros(model.layout.prefix_length) if config.prefix_senses else None
    dtypes = {name: torch.float32 if part.is_coded else torch.long for name, part in config.actions.items()}
    action = as_action({name: zeros(*part.shape, dtype=dtypes[name]) for name, part in config.actions.items()})
    predictor = StepPredictor(model, temperature=0.0, seed=0)
    predictor.tables = whole_tables(model)
    belief = fill_cache(model, Belief(state, [], prefix, None, model), predictor.tables)
    plan = BlockPlan([block.name for block in model.blocks])
    return predictor, predictor._begin(belief, action, state, plan, False)


def as_seed(seed: int | None) -> int | None:
    """The same as an int. Raises ValueError for anything that is no whole number, or that no generator takes."""
    return None if seed is None else whole("seed", seed, -(2**63), 2**64 - 1)


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device=device).manual_seed(seed)


# ---- functions that are compiled, see `CompiledStep`


def whole_tables(model: PanModel) -> CodeTables:
    """What [`EmbeddingTable.code_tables`] gives, with rows to grow into."""
    return model.table.code_tables(whole=True)


def begin(
    model: PanModel, state: State, embedded: Tensor, action: list[Tensor], tables: CodeTables
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `embed_step` gives, of a state, the same embedded, and the parts of actions `(N, ...)`."""
    return embed_step(model, state, embedded, model.embed_action(action, tables), tables)


def predict_outcome(
    model: PanModel, before: Tensor, state: State, context: Tensor, tables: CodeTables
) -> tuple[Tensor, Tensor, Tensor]:
    """The next state embedded, the expected reward and the probability that the episode goes on `(N,)`. States are
    without latents, as in training, since imagined ones have none."""
    after = model.embed_state(state, tables)
    reward_logits, continue_logit = model.outcome(before, after, context)
    return after, model.outcome.expected_reward(reward_logits), continue_logit.sigmoid()


# ---- An imagined step, called as it is or compiled.
#
# How a step goes on depends on what was found: how many state tokens are looked at, which rows go on. Between these
# decisions lie pure functions of tensors: the change predictor, a run of the backbone, the readout of a level, the
# outcome. They are all of the arithmetic, and each of them is one graph without a break. Their arguments are of two
# kinds: sizes of the model, which are fixed in a graph, and sizes of the moment (rows, selected tokens, what is
# cached), which are symbols in it, so that a graph is made once for one row and once for several.


LEAST_SIZE = 2  # compiled, one of something that varies is another graph than several


class CompiledStep:
    """Calls the functions that a step is made of, see [`PanModel.compile_step`].

    Args:
        options: of `torch.compile`; None to call every function as it is.
    """

    def __init__(self, options: dict | None = None):
        self.options = options
        self._compiled: dict[tuple, Callable] = {}

    @property
    def is_compiled(self) -> bool:
        return self.options is not None

    @property
    def least_size(self) -> int:
        """The least size that something of the moment is given: what it has, unless that costs a graph of its own."""
        return LEAST_SIZE if self.is_compiled else 1

    def __call__(
        self, function: Callable, *args, which: tuple = (), rows: int = 1, sizes: Iterable[tuple[Tensor, int]] = ()
    ):
        """What `function(*args)` gives.

        Args:
            which: what tells this use of the function from others, whose graphs are their own.
            rows (`int`): N; tensors with so many rows can have any number of them, from two on.
            sizes: `(tensor, dimension)`, what else is a size of the moment.
        """
        if self.options is None:
            return function(*args)
        key = (function, *which)
        if key not in self._compiled:
            options = {"fullgraph": True, "isolate_recompiles": True} | self.options
            self._compiled[key] = torch.compile(function, **options)
        varying = {id(tensor): dimension for tensor, dimension in sizes}
        return self._compiled[key](*(_as_wanted(given, rows, varying) for given in args))

    def __getstate__(self) -> dict:
        return {"options": self.options, "_compiled": {}}  # graphs are made anew by whoever gets a copy


def _as_wanted(given, rows: int, varying: dict[int, int]):
    """An argument with every size of the moment marked as one: rows, and of some tensors, by id, another dimension.
    None is a view, of which the sizes of what it looks into would count too."""
    if isinstance(given, Tensor):
        return _marked(given, {0: rows} | ({varying[id(given)]: None} if id(given) in varying else {}))
    if isinstance(given, dict):
        return {name: _as_wanted(part, rows, varying) for name, part in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(_as_wanted(part, rows, varying) for part in given)
    if isinstance(given, State):
        return given.map(lambda tensor: _as_wanted(tensor, rows, varying))
    if isinstance(given, TokenSelection):
        return TokenSelection(*_as_wanted((given.index, given.valid), rows, varying))
    if isinstance(given, DynamicCache):  # a fork of the belief's
        for layer in given.layers:
            layer.keys, layer.values = _as_wanted((layer.keys, layer.values), rows, varying)
    return given


def _marked(tensor: Tensor, sizes: dict[int, int | None]) -> Tensor:
    """The tensor with some dimensions marked, those whose size is the one that is given, or any from two on."""
    if tensor._is_view():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    for dimension, size in sizes.items():
        if dimension < tensor.dim() and LEAST_SIZE <= tensor.shape[dimension] == (size or tensor.shape[dimension]):
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor
