"""The simulation cache: look-ups, values, keys, neighbours and scope, on worlds with known answers."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mazes import GridBelief, GridWorld
from tiny_worlds import board_world, observe, world_model

from pan_hf.agents import cache_neighbours, cache_scope
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_graph import back_up
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.cache_neighbours import Neighbours
from pan_hf.agents.cache_recorder import _values_to_go
from pan_hf.agents.cache_scope import scope_of, task_of
from pan_hf.agents.cache_store import FILE, CacheStore, OutcomeRow, StateRow
from pan_hf.agents.critics import FunctionCritic, GoalCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.plan import Contradicted, compared_keys
from pan_hf.agents.shooting import CEM
from pan_hf.checkpoints import load
from pan_hf.modeling import DiscreteAction, VectorAction

CRITIC = RewardCritic()


def fill(cache, world, critic=CRITIC, planner=None, belief=None):
    """Plans once and writes what was imagined; returns the plan."""
    belief = world.root() if belief is None else belief
    with cache.recording(world, critic) as recorded:
        plan = (planner or GraphSearch()).plan(recorded, belief, critic)
        recorded.keep_plan(belief, plan)
    return plan


def follow(cache, world, critic=CRITIC, steps=20):
    """The cells that a cache's answers lead through."""
    belief, cells = world.root(), []
    while len(cells) < steps and (answer := cache.lookup(world, belief, critic)) is not None:
        belief = GridBelief(world.step(belief.cells, answer.plan.actions))
        cells.append(tuple(belief.cells[0].tolist()))
    return cells


@pytest.fixture
def cache(tmp_path):
    return SimulationCache(tmp_path / "cache", scope="maze")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A recording of the board, and an untrained model of it."""
    return board_world(tmp_path_factory.mktemp("board"))


# --- Looking up


def test_what_was_searched_once_is_followed_to_the_goal_without_a_simulation(cache):
    world = GridWorld()
    assert cache.lookup(world, world.root(), CRITIC) is None
    plan = fill(cache, world)
    calls = world.calls
    assert follow(cache, world)[-1] == (0, 3) and len(follow(cache, world)) == len(plan) == 11
    assert world.calls == calls
    answer = cache.lookup(world, world.root(), CRITIC)
    assert answer.level == "exact" and answer.reach == 1.0
    assert answer.value == pytest.approx(0.99**10, abs=1e-5) == plan.expected_return
    assert answer.plan.states == plan.states[:1] and not answer.plan.reaches_goal


def test_a_way_that_no_search_went_joins_up_from_two_that_were(cache):
    """One search finds no goal within its depth; a later one, from where it ended, finds it."""
    world = GridWorld("S...G")
    fill(cache, world, planner=GraphSearch(max_depth=2, sampled_searches=0))
    assert cache.lookup(world, world.root(), CRITIC) is None
    fill(cache, world, belief=GridBelief(torch.tensor([[0, 2]])), planner=GraphSearch(max_depth=2))
    assert follow(cache, world) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_an_action_that_may_not_be_taken_or_is_refuted_is_left_to_a_planner(cache):
    """All else is valued by way of it: staying is worth almost as much as the step that is forbidden."""
    world, right = GridWorld("S.G\n..."), 3
    fill(cache, world)
    assert cache.lookup(world, world.root(), CRITIC).plan.actions.tolist() == [right]
    mask = {"action": torch.tensor([1, 1, 1, 0, 1]).bool()}
    assert cache.lookup(world, world.root(), CRITIC, mask=mask) is None
    refuted = Contradicted(transitions={(bytes([0, 0]), right)})
    assert cache.lookup(world, world.root(), CRITIC, refuted=refuted) is None
    elsewhere = Contradicted(transitions={(bytes([1, 0]), right)})
    assert cache.lookup(world, world.root(), CRITIC, refuted=elsewhere) is not None


def test_a_plan_that_reaches_no_goal_is_searched_again_and_not_believed(cache):
    world = GridWorld("S.#G\n..#.")
    fill(cache, world, planner=GraphSearch(sampled_searches=0))
    assert cache.lookup(world, world.root(), CRITIC) is None
    wanted = FunctionCritic(function=_to_the_right)  # knows what is better and no goal: its planner's word counts
    plan = fill(cache, world, wanted)
    assert cache.lookup(world, world.root(), wanted).plan.actions.tolist() == plan.actions[:1].tolist()


def _to_the_right(futures):
    return futures.codes["camera"][0][..., 1].float()


def test_hits_and_misses_are_counted_by_level(tmp_path):
    world, cache = GridWorld(), SimulationCache(tmp_path, scope="maze")
    cache.lookup(world, world.root(), CRITIC)
    fill(cache, world)
    follow(cache, world)
    cache.close()
    counts = SimulationCache(tmp_path, scope="maze").store.counters()
    assert counts["hit exact"] == 11 and counts["miss"] == 2  # before, and at the goal itself


# --- Values


def test_values_backed_up_as_entries_come_are_those_of_the_whole_graph(tmp_path):
    """Against value iteration by hand, of a chain whose third step falls back in three of four cases."""
    store, space, task = _chain(tmp_path)
    critic = RewardCritic(discount=0.9)
    back_up(store, task, critic, 0, [_node(index) for index in range(4)])
    values = _best(store, task)
    # V3 = 1 (reaches the goal); V2 = 0.25 * 0.9 * V3 + 0.75 * 0.9 * V0; V1 = 0.9 V2; V0 = 0.9 V1
    by_hand = np.linalg.solve([[1, -0.9, 0, 0], [0, 1, -0.9, 0], [-0.675, 0, 1, -0.225], [0, 0, 0, 1]], [0, 0, 0, 1])
    assert [values[index][0] for index in range(4)] == pytest.approx(list(by_hand), abs=2e-3)
    assert all(values[index][1] == pytest.approx(1.0, abs=2e-3) for index in range(4))  # it gets there some time


def test_a_later_outcome_changes_the_values_of_what_leads_to_it(tmp_path):
    store, space, task = _chain(tmp_path)
    critic = RewardCritic(discount=0.9)
    back_up(store, task, critic, 0, [_node(index) for index in range(4)])
    before = _best(store, task)[0][0]
    many = [OutcomeRow(_node(2), b"aaaa", _node(3), 96, 0.0, 1.0, 0.0, 1, 0.0, False)]
    store.write(space, 0, [], many, task)
    computed = back_up(store, task, critic, 0, [_node(2)])
    assert _best(store, task)[0][0] > before + 0.1 and computed > 3


def test_an_action_that_takes_several_steps_is_discounted_by_all_of_them(tmp_path):
    store, space, task = _chain(tmp_path, duration=5)
    back_up(store, task, RewardCritic(discount=0.9), 0, [_node(index) for index in range(4)])
    values = _best(store, task)
    assert values[1][0] == pytest.approx(0.9**5 * values[2][0], abs=1e-3)


def test_the_rest_of_a_plan_is_discounted_by_how_long_its_actions_take():
    scores = torch.tensor([[0.0, 0.0, 1.0]])
    futures = SimpleNamespace(reward=scores, continue_prob=torch.ones(1, 3), elapsed=torch.tensor([[0, 4, 9]]))
    assert _values_to_go(RewardCritic(discount=0.9), futures) == pytest.approx([0.9**5, 1.0])
    del futures.elapsed
    assert _values_to_go(RewardCritic(discount=0.9), futures) == pytest.approx([0.9, 1.0])


def _node(index):
    return bytes([index]) * 16


def _chain(folder, duration=1):
    """0 -> 1 -> 2 -> 3 -> goal; the step from 2 was drawn four times and fell back to 0 in three."""
    store = CacheStore(folder)
    space, _ = store.add_space(scope_of(None, "chain"))
    task = store.task("wanted", "")
    states = [StateRow([_node(index)], bytes([index]), 1, b"", None) for index in range(5)]
    edges = [(0, 1, 0), (1, 2, 0), (2, 3, 1), (2, 0, 3), (3, 4, 0)]
    outcomes = [
        OutcomeRow(_node(a), b"aaaa", _node(b), n, float(b == 4), 1.0, 0.0, duration, float(b == 4), b == 4)
        for a, b, n in edges
    ]
    store.write(space, 0, states, outcomes, task)
    return store, space, task


def _best(store, task):
    rows = store.query("SELECT node, value, reach FROM best WHERE task=?", (task,))
    return {node[0]: (value, reach) for node, value, reach in rows}


def test_a_goal_that_comes_later_is_scored_from_what_is_stored(board, tmp_path):
    model, processor = load(board.model)
    cache, belief = SimulationCache(tmp_path), _perceived(model, processor, board)
    with cache.recording(model, CRITIC) as recorded:
        GraphSearch(max_states=30, sampled_searches=0).plan(recorded, belief, CRITIC)
    (raw,) = cache.store.query(
        "SELECT n.raw FROM outcomes o JOIN states n ON n.node=o.next WHERE o.state != o.next ORDER BY o.id LIMIT 1"
    )[0]
    wanted = cache.bind(model, CRITIC).keys.belief([raw]).codes["camera"]
    goal = GoalCritic(codes={"camera": [level[0] for level in wanted]})
    assert cache.lookup(model, belief, goal) is None
    cache.back_up(model, goal)
    answer = cache.lookup(model, belief, goal)
    future = model.simulate(belief, answer.plan.actions[None], temperature=0.0)
    assert goal.reached(future, goal.score(future)).any() or answer.reach >= 0.5


def test_a_critic_whose_value_needs_more_than_scores_is_not_backed_up(cache):
    class Deep(RewardCritic):
        def value(self, futures, scores):
            return futures.belief.cells.float().sum(1)

    world = GridWorld()
    with pytest.raises(ValueError, match="needs more than scores"):
        cache.back_up(world, Deep())


# --- Levels and neighbours


def _perceived(model, processor, board, row=0):
    seen = {name: values[row] for name, values in board.trajectories.observations.items()}
    seen["camera"] = np.moveaxis(seen["camera"], 0, -1)
    return model.perceive(**processor(observation=seen))


def test_levels_say_what_they_leave_out_and_keys_are_found_again(board, tmp_path):
    model, processor = load(board.model)
    belief = _perceived(model, processor, board)
    keys = Keys(model, b"salt")
    assert [level.name for level in keys.levels] == ["exact", "present", "levels=1"]
    futures = model.simulate(belief, torch.tensor([[1, 3, 2]]), temperature=0.0)
    filed = keys.of_futures(futures)
    again = keys.belief(filed.raw[2:])
    assert again.keys() == [filed.raw[2]] and len(again.history) == 1
    ahead = [model.simulate(each, torch.tensor([[4]]), temperature=0.0).keys() for each in (futures.belief, again)]
    assert ahead[0] == ahead[1]
    shorter = keys.of_belief(model.perceive(**_one_frame(again, model)))
    assert len(shorter.raw[0]) == filed.present


def _one_frame(belief, model):
    frame = {name: belief.decode(name)[:, None] for name in model.config.coded_senses}
    return {"observation": frame | {"mission": belief.prefix}}


def test_what_a_finer_code_tells_apart_is_one_state_at_a_coarser_level(tmp_path):
    model = world_model(senses=("camera",))
    keys = Keys(model, b"salt")
    belief = model.perceive(observe(model, batch=1))
    other = copy.deepcopy(belief)
    other.state.codes["camera"][-1][0, 0] = (other.state.codes["camera"][-1][0, 0] + 1) % 4
    one, two = keys.of_belief(belief), keys.of_belief(other)
    assert one.nodes[0] != two.nodes[0] and one.nodes[-1] == two.nodes[-1]


def test_an_agent_that_compares_coarse_states_is_told_the_next_one_as_it_compares_them(tmp_path):
    model, wanted = world_model(senses=("camera",)), RewardCritic(threshold=-1e9)  # any step is good enough
    cache, belief = SimulationCache(tmp_path), model.perceive(observe(model, batch=1))
    with cache.recording(model, wanted) as recorded:
        recorded.simulate(belief, torch.tensor([[1]]), temperature=0.0)
    after = model.simulate(belief, torch.tensor([[1]]), temperature=0.0).belief
    for levels in (None, 1):
        compared_by = compared_keys(model, levels)
        assert cache.lookup(model, belief, wanted, key_levels=levels).plan.states == after.keys(**compared_by)
        refuted = Contradicted(transitions={(belief.keys(**compared_by)[0], 1)})
        assert cache.lookup(model, belief, wanted, key_levels=levels, refuted=refuted) is None


@pytest.mark.parametrize("action", ["vector", "text", "discrete"])
def test_actions_of_every_kind_come_back_as_they_were(action):
    from tiny_worlds import acts

    model = world_model(senses=("camera",), action=action)
    actions = acts(model, batch=3)[:, 0]
    keys = Keys(model, b"")
    assert torch.equal(keys.actions(keys.of_actions(actions)), actions)


def test_an_action_that_the_model_has_and_the_environment_has_not_is_no_answer(cache):
    world = GridWorld("SG")
    fill(cache, world)
    assert cache.lookup(world, world.root(), CRITIC).plan.actions.tolist() == [3]
    fewer = GridWorld("SG")  # as `FewerActions` is
    fewer.config.action = DiscreteAction(3)
    assert cache.lookup(fewer, world.root(), CRITIC) is None


@pytest.mark.parametrize("context_steps", [1, 2])
def test_keys_of_another_model_are_refused(context_steps):
    model = world_model(senses=("camera", "mission"), context_steps=context_steps)
    keys = Keys(model, b"")
    (raw,) = keys.of_belief(model.perceive(observe(model, batch=1))).raw
    assert keys.belief([raw]).keys() == [raw]
    for first in (2**30, -2):
        with pytest.raises(ValueError, match="not of this world"):
            keys.belief([np.int32(first).tobytes() + raw[4:]])
    for other in (raw[:-1], raw + b"1234", raw * 3):
        with pytest.raises(ValueError, match="not of this world"):
            keys.belief([other])
    for number in (model.config.action.num_actions, -1):
        with pytest.raises(ValueError, match="not of this world"):
            keys.actions([np.int32(number).tobytes()])
    with pytest.raises(ValueError, match="Expected 4 bytes"):
        keys.actions([b"12"])


def test_an_action_that_is_no_number_is_refused():
    keys = Keys(world_model(senses=("camera",), action="vector"), b"")
    with pytest.raises(ValueError, match="not of this world"):
        keys.actions([np.float32([0.5, np.nan]).tobytes()])


def test_an_action_of_several_parts_comes_back_by_name():
    from pan_hf.modeling.state_pan import Actions

    parts = {"turn": DiscreteAction(3), "arm": VectorAction(dim=2, low=[-1, -1], high=[1, 1])}
    keys = Keys(SimpleNamespace(config=SimpleNamespace(actions=parts)), b"")
    given = Actions({"turn": torch.tensor([2, 0]), "arm": torch.tensor([[0.5, -0.25], [0.0, 1.0]])})
    back = keys.actions(keys.of_actions(given))
    assert {name: part.tolist() for name, part in back.parts.items()} == {
        name: part.tolist() for name, part in given.parts.items()
    }


def test_a_plan_of_numbers_is_found_again_at_its_states(tmp_path):
    model = world_model(senses=("camera",), action="vector")
    cache, belief = SimulationCache(tmp_path), model.perceive(observe(model, batch=1))
    planner = CEM(num_samples=8, horizon=3, num_iterations=1)
    with cache.recording(model, CRITIC) as recorded:
        plan = planner.plan(recorded, belief, CRITIC, generator=torch.Generator().manual_seed(0))
        recorded.keep_plan(belief, plan)
    answer = cache.lookup(model, belief, CRITIC)
    assert torch.equal(answer.plan.actions[0], plan.actions[0])
    assert cache.store.counters()["entries"] == len(plan)


def test_a_near_state_answers_for_one_that_is_not_there_and_a_far_one_does_not(tmp_path):
    model = world_model(senses=("camera",), action="vector")
    wanted = FunctionCritic(function=_rewarded)
    cache = SimulationCache(tmp_path, radius=1e-6)
    belief = model.perceive(observe(model, batch=1))
    with cache.recording(model, wanted) as recorded:
        plan = CEM(num_samples=4, horizon=4, num_iterations=1).plan(recorded, belief, wanted)
        recorded.keep_plan(belief, plan)
    other = copy.deepcopy(belief)
    for level in other.state.codes["camera"]:
        level[0, 0] = (level[0, 0] + 1) % 4  # unequal at every level
    assert cache.lookup(model, other, wanted) is None
    cache.radius = 10.0
    answer = cache.lookup(model, other, wanted)
    assert answer.level == "neighbours" and answer.distance > 0 and answer.plan.states is None


def _rewarded(futures):
    return futures.reward


def test_neighbours_are_the_nearest_ones_of_the_same_text_by_a_plain_scan(tmp_path, monkeypatch):
    store = CacheStore(tmp_path)
    space, _ = store.add_space(scope_of(None, "points"))
    points = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float16)
    names = [int(index).to_bytes(16, "big") for index in range(300)]
    states = [
        StateRow([name], name, 16, b"ab"[index % 2 : index % 2 + 1], point.tobytes())
        for index, (name, point) in enumerate(zip(names, points, strict=True))
    ]
    entries = [OutcomeRow(name, b"a", name, 1, 0.0, 1.0, 0.0, 1) for name in names]
    store.write(space, 0, states, entries)
    query = points[7].astype(np.float32) + 0.5
    distances = np.linalg.norm(points.astype(np.float32) - query, axis=1)
    expected = [index for index in np.argsort(distances) if index % 2 == 1][:3]
    found = Neighbours(store, space).nearest(b"b", query, 3)
    assert [int.from_bytes(node, "big") for node, _ in found] == expected
    monkeypatch.setattr(cache_neighbours, "SCANNED", 10)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.warns(UserWarning, match=r"pip install 'pan_hf\[cache\]'"):
        slow = Neighbours(store, space)
    assert slow.nearest(b"b", query, 3) == found


# --- Whose entries


def test_entries_outlive_growth_and_no_other_change(board, tmp_path):
    model, processor = load(board.model)
    belief = _perceived(model, processor, board)
    cache = SimulationCache(tmp_path)
    with cache.recording(model, CRITIC) as recorded:
        GraphSearch(max_states=10, sampled_searches=0).plan(recorded, belief, CRITIC)
    entries = cache.store.counters()["entries"]
    ancestor, _ = load(board.model)
    model.grow("action.0", ["jump"])
    reader = SimulationCache(tmp_path)
    reader.bind(model, CRITIC)
    reader.bind(ancestor, CRITIC)  # one that only looks takes it from nobody
    assert len(reader.store.spaces()) == 1 and reader.store.counters()["entries"] == entries
    with reader.recording(model, CRITIC) as recorded:
        recorded.simulate(belief, torch.tensor([[5]]), temperature=0.0)
    assert reader.store.counters()["entries"] == entries + 1
    with pytest.raises(ValueError, match="a vocabulary that has grown beyond this model's"):
        SimulationCache(tmp_path).bind(ancestor, CRITIC)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match="a model with other weights"):
        reader.bind(model, CRITIC)
    assert (tmp_path / FILE).read_bytes() == before


def test_weights_are_digested_once_however_many_stale_spaces_there_are(tmp_path, monkeypatch):
    model, store, calls = world_model(senses=("camera",)), CacheStore(tmp_path), []
    for number in range(3):
        store.add_space(replace(scope_of(model), digest=f"other {number}"))
    digest = cache_scope.digest_of
    monkeypatch.setattr(cache_scope, "digest_of", lambda *given: calls.append(given) or digest(*given))
    SimulationCache(tmp_path, on_stale="keep").bind(model, CRITIC)
    assert len(calls) == 1 and len(store.spaces()) == 4


def test_retiring_a_code_makes_entries_stale(tmp_path):
    model = world_model(senses=("camera",))
    scope = scope_of(model)
    assert scope.holds_for(model)
    model.table.deactivate([int(model.table.segment_rows("camera", 0)[0])])
    assert not scope.holds_for(model)


def test_another_effort_is_another_scope():
    from pan_hf.agents.world import FixedEffort

    model = world_model(senses=("camera",))
    assert scope_of(FixedEffort(model, "coarsest")).digest != scope_of(model).digest == scope_of(model).digest


def test_stale_entries_are_kept_beside_or_dropped_as_told(tmp_path):
    world = GridWorld()
    fill(SimulationCache(tmp_path, scope="one"), world)
    with pytest.raises(ValueError, match="on_stale"):
        SimulationCache(tmp_path, scope="two").bind(world, CRITIC)
    beside = SimulationCache(tmp_path, scope="two", on_stale="keep")
    assert beside.lookup(world, world.root(), CRITIC) is None
    fill(beside, world)
    assert beside.store.counters()["entries"] == 180
    assert SimulationCache(tmp_path, scope="one").lookup(world, world.root(), CRITIC) is not None
    SimulationCache(tmp_path, scope="three", on_stale="drop").bind(world, CRITIC)
    assert SimulationCache(tmp_path, scope="three").store.counters()["entries"] == 0


def test_values_are_kept_by_what_is_wanted():
    one, other = RewardCritic(threshold=0.5), RewardCritic(threshold=0.6)
    assert task_of(one) == task_of(RewardCritic(threshold=0.5)) != task_of(other)
    goals = [GoalCritic(codes={"camera": [torch.tensor([code])]}) for code in (1, 2, 1)]
    assert task_of(goals[0]) == task_of(goals[2]) != task_of(goals[1])
    assert task_of(FunctionCritic(function=_rewarded)) != task_of(FunctionCritic(function=_to_the_right))
    defaults = [FunctionCritic(function=lambda futures, goal=goal: futures.reward - goal) for goal in (1, 2, 1)]
    assert task_of(defaults[0]) == task_of(defaults[2]) != task_of(defaults[1])
    inner = [eval(f"lambda futures: max(reward > {least} for reward in futures.reward)") for least in (3, 4, 3)]
    inner = [FunctionCritic(function=function) for function in inner]
    assert task_of(inner[0]) == task_of(inner[2]) != task_of(inner[1])
    with pytest.raises(ValueError, match="give the cache a `task`"):
        task_of(FunctionCritic(function=lambda futures: goals))
    assert task_of(FunctionCritic(function=lambda futures: goals), "mine") == task_of(None, "mine")
