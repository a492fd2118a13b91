"""Searches written in the shape of llm-reasoners, over a world model of ours.

Such a search knows a world by `init_state`, `step` and `is_terminal`, and what is wanted by `get_actions`,
`fast_reward` and `reward`; one state and one action at a time. [`ReasonersWorld`] and [`ReasonersConfig`] answer in
that shape without the library. They gather single requests: when something is asked of a state for the first time, all
of its actions are imagined in one call, with those of the other states whose actions were asked for meanwhile. Several
threads may search at once.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pan_hf.agents.plan import Candidate, Contradicted, Plan, best_candidates, check_numbers, check_one_row
from pan_hf.agents.planner import Planner, Problem, check_counts, check_drawable
from pan_hf.agents.strategy import stacked
from pan_hf.agents.successors import Successors, gather, imagine_step
from pan_hf.agents.world import World
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, truth, whole
from pan_hf.specs import import_object


@dataclass(frozen=True, eq=False)
class ReasonersState:
    """An imagined state. Two are equal if their codes are.

    Args:
        key (`bytes`): of the belief.
        state (`bytes`): of what would be seen.
        belief: (belief of several rows, row).
        actions (`tuple`): from the first state to this one, as `get_actions` gave them.
        states (`tuple[bytes]`): what would be seen after each of them.
        scores (`tuple[float]`), passes (`tuple[float]`): the critic's score of each step, and the share of what
            follows it that counts before it.
        promised (`float`): what is taken to come after the last step.
        is_goal (`bool`): whether the last step reached the goal.
        is_over (`bool`): whether the episode is likely to have ended.
    """

    key: bytes
    state: bytes
    belief: tuple[Any, int] = field(repr=False)
    actions: tuple = ()
    states: tuple[bytes, ...] = ()
    scores: tuple[float, ...] = ()
    passes: tuple[float, ...] = ()
    promised: float = 0.0
    is_goal: bool = False
    is_over: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReasonersState) and (self.key, self.is_over) == (other.key, other.is_over)

    def __hash__(self) -> int:
        return hash((self.key, self.is_over))


@dataclass(frozen=True, eq=False)
class Move:
    """An action that is no number of a choice, such as a vector. It prints as what a person reads."""

    action: torch.Tensor | Actions = field(repr=False)
    label: str

    def __str__(self) -> str:
        return self.label


class ReasonersWorld:
    """A world model as a search in the shape of llm-reasoners asks for one.

    Args:
        world ([`World`]): imagines.
        belief: where to start, one row; `update_example` gives another.
        critic ([`Critic`] or function of futures): what is wanted.
        max_depth (`int`): actions after which a state is terminal.
        num_actions (`int`): actions offered in a state: all of them where the world has no more, else some at random.
        temperature (`float`): of sampled codes; 0 takes the most likely ones. Above 0 each `step` is another draw.
        batch_size (`int`): imagined steps in one call, at most; the actions of one state stay together.
        key_levels (`int`, *optional*): see [`GraphSearch`].
        generator (`torch.Generator`, *optional*): on the CPU; of draws.
        refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong.
        mask (*optional*): which actions are allowed at the start, as an environment gives it.

    Raises:
        ValueError: a belief of more than one row, a number out of range, an action that cannot be drawn, or a mask
            that allows nothing.
    """

    def __init__(
        self,
        world: World,
        belief,
        critic,
        *,
        max_depth: int = 30,
        num_actions: int = 16,
        temperature: float = 0.0,
        batch_size: int = 64,
        key_levels: int | None = None,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
    ):
        levels = None if key_levels is None else whole("key_levels", key_levels, 1)
        self.problem = Problem(world, belief, critic, generator, refuted, mask, key_levels=levels)
        self.parts, self.critic = self.problem.parts, self.problem.critic
        self.max_depth, self.num_actions = whole("max_depth", max_depth, 1), whole("num_actions", num_actions, 1)
        self.temperature, self.batch_size = real("temperature", temperature, 0), whole("batch_size", batch_size, 1)
        self.best: ReasonersState | None = None
        self._lock = threading.RLock()
        self._offered: dict[ReasonersState, list] = {}
        self._pending: dict[ReasonersState, None] = {}  # offered and not imagined, oldest first
        self._imagined: dict[tuple[ReasonersState, Any], tuple[Successors, int]] = {}
        check_drawable(self.parts)

    @property
    def num_simulated(self) -> int:
        """Imagined steps so far."""
        return self.problem.world.num_simulated

    @property
    def num_calls(self) -> int:
        """`simulate` calls that made them."""
        return self.problem.world.num_calls

    # ---- as llm-reasoners asks

    def update_example(self, example, prompt: Any = None) -> None:
        """Starts from another belief, where all is allowed; None: from the same. What was imagined is forgotten.

        Raises:
            ValueError: no belief of one row.
        """
        if example is not None:
            check_one_row(example)
        with self._lock:
            if example is not None:
                self.problem.belief, self.problem.masks = example, {}
            self._offered, self._pending, self._imagined, self.best = {}, {}, {}, None

    def init_state(self) -> ReasonersState:
        return ReasonersState(*self.problem.root_keys(), (self.problem.belief, 0))

    def step(self, state: ReasonersState, action) -> tuple[ReasonersState, dict[str, Any]]:
        """The state after an action, and its `score` and `is_goal`."""
        with self._lock:
            successors, row = self._outcome(state, action)
            if self.temperature:  # the next time it is drawn anew
                del self._imagined[state, action]
            after = self._after(state, action, successors, row)
            if self.best is None or self.worth(after) > self.worth(self.best):
                self.best = after
            return after, {"score": after.scores[-1], "is_goal": after.is_goal}

    def is_terminal(self, state: ReasonersState) -> bool:
        return state.is_goal or state.is_over or len(state.actions) >= self.max_depth

    # ---- what the search configuration asks

    def actions(self, state: ReasonersState) -> list:
        """Actions to try: numbers where all parts are choices, [`Move`] elsewhere; none of a terminal state."""
        with self._lock:
            if self.is_terminal(state):
                return []
            if state not in self._offered:
                self._offered[state] = self._offer(state)
                self._pending[state] = None
            return list(self._offered[state])

    def score(self, state: ReasonersState, action) -> float:
        """The critic's score of the step that an action is."""
        with self._lock:
            successors, row = self._outcome(state, action)
            return successors.scores[row]

    def worth(self, state: ReasonersState) -> float:
        """What the way to a state is worth, with what it promises."""
        promised = 0.0 if state.is_goal or state.is_over else state.promised
        return self.critic.combined(state.scores, state.passes, promised)

    def candidates(self, arrived: ReasonersState) -> tuple[Candidate, ...]:
        """The way to a state, and the other first actions that were imagined, by their scores."""
        way = stacked([self._as_action(action) for action in arrived.actions])
        others = [
            Candidate(stacked([self._as_action(action)]), successors.scores[row])
            for (state, action), (successors, row) in self._imagined.items()
            if not state.actions and action != arrived.actions[0]
        ]
        return best_candidates([Candidate(way, self.worth(arrived), reaches_goal=arrived.is_goal), *others])

    # ---- gathering

    def _outcome(self, state: ReasonersState, action) -> tuple[Successors, int]:
        """What follows from an action. It is imagined with all that is pending, if it was not yet."""
        if (state, action) not in self._imagined:
            wanted = [(state, action)]
            wanted += [(state, each) for each in self.actions(state) if each != action]
            for other in list(self._pending):
                more = [] if other == state else [(other, each) for each in self._offered[other]]
                if len(wanted) + len(more) <= self.batch_size:
                    wanted += more
                    self._pending.pop(other, None)
            self._pending.pop(state, None)
            self._imagine([pair for pair in wanted if pair not in self._imagined])
        return self._imagined[state, action]

    def _imagine(self, wanted: list[tuple[ReasonersState, Any]]) -> None:
        actions = stacked([self._as_action(action) for _, action in wanted])
        successors = imagine_step(
            self.problem, gather([state.belief for state, _ in wanted]), actions, self.temperature
        )
        self._imagined |= {pair: (successors, row) for row, pair in enumerate(wanted)}

    def _after(self, state: ReasonersState, action, successors: Successors, row: int) -> ReasonersState:
        is_goal = successors.claims[row] and self._is_confirmed(state, action)
        # a claim that is not confirmed is not believed, nor is its score
        score = 0.0 if successors.claims[row] and not is_goal else successors.scores[row]
        share = self.critic.discount ** successors.durations[row] * successors.continue_probs[row]
        return ReasonersState(
            key=successors.keys[row],
            state=successors.states[row],
            belief=(successors.belief, row),
            actions=(*state.actions, action),
            states=(*state.states, successors.states[row]),
            scores=(*state.scores, score),
            passes=(*state.passes, share),
            promised=successors.outlook(self.critic, row, score, self.max_depth - len(state.actions) - 1),
            is_goal=is_goal,
            is_over=not successors.going_on[row],
        )

    def _is_confirmed(self, state: ReasonersState, action) -> bool:
        refuted = self.problem.refuted.goals
        if self.parts.is_discrete and (state.state, self.parts.number_of(action)) in refuted:
            return False
        if self.temperature:  # the likely future need not lead there: the world has to tell
            return True
        return self.problem.confirms(stacked([self._as_action(each) for each in (*state.actions, action)]))

    def _offer(self, state: ReasonersState) -> list:
        if not self.parts.is_discrete:
            actions = self.problem.random_actions(self.num_actions, {} if state.actions else self.problem.masks)
            moves = (actions[index] for index in range(self.num_actions))
            return [Move(move, self.parts.label(self.parts.to_environment(move))) for move in moves]
        allowed, wrong = self._allowed(state), self.problem.refuted.transitions
        offered = [
            number
            for number in range(self.parts.num_choices)
            if (allowed is None or allowed[number]) and (state.state, number) not in wrong
        ]
        if len(offered) > self.num_actions:
            chosen = torch.randperm(len(offered), generator=self.problem.generator)[: self.num_actions].tolist()
            offered = [offered[index] for index in sorted(chosen)]
        return offered

    def _allowed(self, state: ReasonersState) -> torch.Tensor | None:
        """Which choices are allowed, bool `(num_choices,)`; None where nothing is forbidden."""
        if not state.actions:
            return self.problem.allowed_now()
        allowed = self.problem.allowed_in(gather([state.belief]))
        return None if allowed is None else allowed[0]

    def _as_action(self, action) -> torch.Tensor | Actions:
        """One action as the world takes it, of what a search handed back: a number, a name or a [`Move`]."""
        if isinstance(action, Move):
            return action.action
        if not self.parts.is_discrete:
            raise ValueError(f"An action of this world is one that `get_actions` gave, got {action!r}.")
        return self.parts.of_numbers(torch.tensor([self.parts.number_of(action)]))[0]


class ReasonersConfig:
    """What is wanted, as a search in the shape of llm-reasoners asks for it: the critic's scores, as rewards.

    Args:
        world ([`ReasonersWorld`]): the world model that is searched.
        looks_ahead (`bool`): `fast_reward` is the score of the imagined step, which costs no more once `step` follows;
            False: 0, and nothing is imagined of a state before a step from it is asked for.
    """

    def __init__(self, world: ReasonersWorld, looks_ahead: bool = True):
        self.world, self.looks_ahead = world, looks_ahead

    def update_example(self, example, prompt: Any = None) -> None:
        """Nothing: the world model holds the start."""

    def get_actions(self, state: ReasonersState) -> list:
        return self.world.actions(state)

    def fast_reward(self, state: ReasonersState, action) -> tuple[float, dict[str, Any]]:
        """What an action brings, before it is chosen."""
        return (self.world.score(state, action) if self.looks_ahead else 0.0), {}

    def reward(self, state: ReasonersState, action, **details: Any) -> tuple[float, dict[str, Any]]:
        """What an action brought. Args: details, what `fast_reward` and `step` said of it."""
        score = details.get("score")
        score = self.world.score(state, action) if score is None else score
        return score, {"reward": score}


@dataclass(frozen=True)
class ReasonersSearch(Planner):
    """A planner that is a search in the shape of llm-reasoners.

    Args:
        search (`Callable` or `str`): `search(world_model, search_config)`, whose result has the state it arrived at as
            `terminal_state`; or a class of such, or "module:name" of either, as in
            `reasoners?search=reasoners.algorithm:MCTS`.
        settings (`dict`, *optional*): what the class is made with.
        max_depth, num_actions, temperature, batch_size, key_levels: see [`ReasonersWorld`].
        looks_ahead (`bool`): see [`ReasonersConfig`].

    Raises:
        ValueError: nothing that can be called, or a setting is no number of its range.
    """

    search: Callable | str
    settings: dict[str, Any] | None = None
    max_depth: int = 30
    num_actions: int = 16
    temperature: float = 0.0
    batch_size: int = 64
    key_levels: int | None = None
    looks_ahead: bool = True

    def __post_init__(self):
        check_counts(self, "max_depth", "num_actions", "batch_size")
        check_numbers(self, real, "temperature", least=0)
        check_numbers(self, truth, "looks_ahead")
        if self.settings is not None and not isinstance(self.settings, Mapping):
            raise ValueError(f"ReasonersSearch: `settings` are a dict by name, got {self.settings!r:.60}.")
        found = import_object(self.search, "search") if isinstance(self.search, str) else self.search
        if isinstance(found, type):
            found = found(**(self.settings or {}))
        if not callable(found):
            raise ValueError(
                f"ReasonersSearch: `search` must be callable as search(world_model, search_config), got {found!r}."
            )
        object.__setattr__(self, "search", found)

    def _search(self, problem: Problem) -> Plan | None:
        """The way to the state that the search arrives at; to the best one it met where it arrives nowhere.

        Raises:
            ValueError: the search took no step, or arrived at what is no state of this world.
        """
        names = ("max_depth", "num_actions", "temperature", "batch_size", "key_levels")
        asked = ReasonersWorld(
            problem.world,
            problem.belief,
            problem.critic,
            generator=problem.generator,
            refuted=problem.refuted,
            mask=problem.masks,
            **{name: getattr(self, name) for name in names},
        )
        if not asked.actions(asked.init_state()):
            return None
        assert callable(self.search)  # since it was built
        said = self.search(asked, ReasonersConfig(asked, self.looks_ahead))
        said = said[0] if isinstance(said, list) and said else said  # several, the best first
        problem.num_claims, problem.num_refused = asked.problem.num_claims, asked.problem.num_refused
        arrived = getattr(said, "terminal_state", said)
        if not isinstance(arrived, ReasonersState | None):
            raise ValueError(
                f"{self.search!r} must return an object with a `terminal_state` of this world, got {arrived!r:.80}."
            )
        arrived = asked.best if arrived is None or not arrived.actions else arrived
        if arrived is None:
            raise ValueError(f"{self.search!r} took no step; give it more iterations or depth.")
        return Plan(
            actions=stacked([asked._as_action(action) for action in arrived.actions]),
            expected_return=asked.worth(arrived),
            states=list(arrived.states),
            reaches_goal=arrived.is_goal,
            parts=asked.parts,
            candidates=asked.candidates(arrived),
        )
