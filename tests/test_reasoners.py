"""Searches written in the shape of llm-reasoners, against that shape alone, over a maze and over a model."""

import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from mazes import GridBelief, GridWorld, MaskedWorld, PointWorld, TwoWalkers, not_a_number, processor, walk
from tiny_worlds import observe, world_model

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.critics import FunctionCritic, RewardCritic
from pan_hf.agents.plan import Contradicted
from pan_hf.agents.reasoners import ReasonersConfig, ReasonersSearch, ReasonersWorld
from pan_hf.agents.registry import make_planners
from pan_hf.modeling import TextAction

# ---- two searches as their library has them: nothing here knows of worlds of ours


@dataclass
class TreeNode:
    state: object
    parent: "TreeNode | None" = None
    action: object = None
    fast_reward: float = 0.0
    fast_details: dict = field(default_factory=dict)
    reward: float = 0.0
    is_terminal: bool = False
    children: "list[TreeNode] | None" = None
    returns: list = field(default_factory=list)


@dataclass
class TreeSearch:
    """Monte Carlo tree search: select by UCT with fast rewards, step when a node is first visited, back up sums."""

    n_iters: int = 60
    w_exp: float = 1.0
    depth_limit: int = 12
    seed: int = 0

    def __call__(self, world_model, search_config):
        chance, root, best = random.Random(self.seed), TreeNode(world_model.init_state()), (-math.inf, None)
        for _ in range(self.n_iters):
            path = [root]
            while path[-1].children and not path[-1].is_terminal:
                path.append(max(path[-1].children, key=lambda node: self.uct(node, len(path[-1].returns))))
                self.visit(world_model, search_config, path[-1])
            while not path[-1].is_terminal and len(path) <= self.depth_limit:
                self.expand(search_config, path[-1])
                if not path[-1].children:
                    break
                most = max(node.fast_reward for node in path[-1].children)
                path.append(chance.choice([node for node in path[-1].children if node.fast_reward == most]))
                self.visit(world_model, search_config, path[-1])
            total = sum(node.reward for node in path)
            for node in path:
                node.returns.append(total)
            if total > best[0]:
                best = (total, path[-1].state)
        return SimpleNamespace(terminal_state=best[1], trace=None)

    def uct(self, node, visits):
        mean = sum(node.returns) / len(node.returns) if node.returns else node.fast_reward
        return mean + self.w_exp * math.sqrt(math.log(max(1, visits)) / max(1, len(node.returns)))

    def visit(self, world_model, search_config, node):
        if node.state is None:
            node.state, details = world_model.step(node.parent.state, node.action)
            node.reward, _ = search_config.reward(node.parent.state, node.action, **node.fast_details, **details)
            node.is_terminal = world_model.is_terminal(node.state)

    def expand(self, search_config, node):
        if node.children is None:
            node.children = []
            for action in search_config.get_actions(node.state):
                fast_reward, details = search_config.fast_reward(node.state, action)
                node.children.append(TreeNode(None, node, action, fast_reward, details))


@dataclass
class Beam:
    """Beam search: asks for the actions of the whole beam, then steps."""

    beam_size: int = 30
    max_depth: int = 12

    def __call__(self, world_model, search_config):
        beam = [(0.0, world_model.init_state())]
        seen = {beam[0][1]}
        for _ in range(self.max_depth):
            offered = [(state, total, search_config.get_actions(state)) for total, state in beam]
            grown = []
            for state, total, actions in offered:
                for action in actions:
                    after, details = world_model.step(state, action)
                    reward, _ = search_config.reward(state, action, **details)
                    if world_model.is_terminal(after) and details["is_goal"]:
                        return SimpleNamespace(terminal_state=after)
                    if after not in seen:
                        seen.add(after)
                        grown.append((total + reward, after))
            beam = sorted(grown, key=lambda pair: -pair[0])[: self.beam_size]
        return SimpleNamespace(terminal_state=None)


# ---- the shape


def test_the_shape_is_theirs():
    world = ReasonersWorld(GridWorld("S.G"), GridWorld("S.G").root(), RewardCritic())
    config = ReasonersConfig(world)
    state = world.init_state()
    assert not world.is_terminal(state) and config.get_actions(state) == [0, 1, 2, 3, 4]
    assert config.fast_reward(state, 3) == (0.0, {})
    after, details = world.step(state, 3)
    assert config.reward(state, 3, **config.fast_reward(state, 3)[1], **details) == (0.0, {"reward": 0.0})
    there, details = world.step(after, 3)
    assert details == {"score": 1.0, "is_goal": True} and world.is_terminal(there) and config.get_actions(there) == []
    assert config.reward(after, 3) == (1.0, {"reward": 1.0})
    assert there.actions == (3, 3) and there.states == (bytes([0, 1]), bytes([0, 2]))
    back, _ = world.step(after, 2)
    assert back == state and hash(back) == hash(state) and back != after  # equal codes are equal states
    world.update_example(GridBelief(torch.tensor([[0, 1]])))
    config.update_example(None)
    assert world.init_state() == after


def test_single_requests_are_gathered_into_batches():
    counts = {}
    for batch_size in (1, 5, 64):
        world = GridWorld()
        ReasonersSearch(Beam(), batch_size=batch_size).plan(world, world.root(), RewardCritic())
        counts[batch_size] = world.calls
    # a state has five actions, and 11 depths have some 20 states: a call for each state, or for each depth
    assert counts[64] <= 11 + 2 < 18 <= counts[5]


def test_what_was_imagined_is_not_imagined_again():
    maze = GridWorld("S.G")
    world = ReasonersWorld(maze, maze.root(), RewardCritic())
    config, state = ReasonersConfig(world), world.init_state()
    for action in config.get_actions(state):
        config.fast_reward(state, action)
        world.step(state, action)
    stayed, _ = world.step(state, 4)
    assert config.get_actions(stayed) == [0, 1, 2, 3, 4] and config.fast_reward(stayed, 3)[0] == 0
    assert (world.num_calls, world.num_simulated) == (1, 5)


def test_nothing_is_imagined_before_a_step_unless_it_looks_ahead():
    maze = GridWorld("S.G")
    world = ReasonersWorld(maze, maze.root(), RewardCritic())
    config = ReasonersConfig(world, looks_ahead=False)
    for action in config.get_actions(world.init_state()):
        assert config.fast_reward(world.init_state(), action) == (0.0, {})
    assert world.num_calls == 0


def test_threads_may_search_at_once():
    maze = GridWorld()
    world = ReasonersWorld(maze, maze.root(), RewardCritic())

    def run(seed):
        return TreeSearch(seed=seed, n_iters=20)(world, ReasonersConfig(world)).terminal_state

    with ThreadPoolExecutor(4) as pool:
        arrived = list(pool.map(run, range(8)))
    alone = [TreeSearch(seed=seed, n_iters=20)(world, ReasonersConfig(world)).terminal_state for seed in range(8)]
    assert arrived == alone and world.num_simulated <= 21 * 5 + 12 * 8 * 20


# ---- as a planner


@pytest.mark.parametrize("search", [TreeSearch(), Beam()])
def test_a_search_in_their_shape_is_a_planner(search):
    world = GridWorld("S.#\n..#\n..G")
    plan = ReasonersSearch(search).plan(world, world.root(), RewardCritic(), generator=torch.Generator())
    length = len(plan)  # a shortest one has 4
    assert plan.reaches_goal and 4 <= length <= 6 and plan.states[-1] == bytes([2, 2])
    assert plan.expected_return == pytest.approx(0.99 ** (length - 1))
    agent = PanAgent(world, processor, RewardCritic(), ReasonersSearch(search))
    assert walk(agent, world) == (length, (2, 2)) and agent.statistics.replans == 1


def test_the_best_state_met_is_gone_to_where_the_search_arrives_nowhere():
    world = GridWorld("S....")
    critic = FunctionCritic(function=lambda futures: futures.codes["camera"][0][..., 1].float())
    plan = ReasonersSearch(Beam(max_depth=4)).plan(world, world.root(), critic)
    assert plan.actions.tolist() == [3] * 4 and not plan.reaches_goal


def test_a_goal_that_is_not_confirmed_or_was_refuted_is_none():
    world = GridWorld(lies=[(1, 1)])
    plan = ReasonersSearch(Beam()).plan(world, world.root(), RewardCritic())
    assert plan.reaches_goal and len(plan) == 11
    world = GridWorld("S.G\n...")
    root = world.root().keys()[0]
    around = ReasonersSearch(Beam()).plan(
        world, world.root(), RewardCritic(), refuted=Contradicted(transitions={(root, 3)})
    )
    assert around.actions.tolist()[0] == 1
    other = ReasonersSearch(Beam()).plan(
        world, world.root(), RewardCritic(), refuted=Contradicted(goals={(bytes([0, 1]), 3)})
    )
    assert other.actions.tolist()[-1] == 0
    everything = Contradicted(transitions={(root, action) for action in range(5)})
    assert ReasonersSearch(Beam()).plan(world, world.root(), RewardCritic(), refuted=everything).reaches_goal


def test_masks_are_kept_now_and_in_imagined_states():
    world = GridWorld("S.G\n...")
    asked = ReasonersWorld(world, world.root(), RewardCritic(), mask=[0, 1, 0, 0, 0])
    assert asked.actions(asked.init_state()) == [1]
    asked.update_example(GridBelief(torch.tensor([[0, 1]])))  # of which the mask says nothing
    assert asked.actions(asked.init_state()) == [0, 1, 2, 3, 4]
    world = MaskedWorld("S.G")
    asked = ReasonersWorld(world, world.root(), RewardCritic())
    assert asked.actions(asked.step(asked.init_state(), 3)[0]) == [2, 3]


def test_several_parts_and_many_choices_are_offered_as_numbers():
    world = TwoWalkers("S.G")
    plan = ReasonersSearch(Beam(), num_actions=25).plan(world, world.root(), RewardCritic(threshold=2.0))
    assert plan.reaches_goal and plan.names == ["right+right"] * 2
    asked = ReasonersWorld(world, world.root(), RewardCritic(), num_actions=6, generator=torch.Generator())
    assert len(set(asked.actions(asked.init_state()))) == 6


def test_numbers_are_offered_as_moves():
    world = PointWorld()
    GridBelief.keys, keys = lambda self: [str(cell).encode() for cell in self.cells.tolist()], GridBelief.keys
    try:
        critic = FunctionCritic(function=lambda futures: futures.reward)
        plan = ReasonersSearch(Beam(beam_size=8, max_depth=4), num_actions=32, max_depth=4).plan(
            world, GridBelief(torch.zeros(1, 2)), critic, generator=torch.Generator().manual_seed(0)
        )
    finally:
        GridBelief.keys = keys
    assert plan.actions.shape[1] == 2 and (plan.actions.sum(0) - world.target).norm() < 0.5


@pytest.mark.parametrize("action", ["discrete", "vector"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_is_searched(action, temperature):
    model = world_model(action=action, context_steps=2)
    belief = model.perceive(observe(model, batch=1))
    planner = ReasonersSearch(
        TreeSearch(n_iters=4, depth_limit=2), max_depth=2, temperature=temperature, num_actions=3
    )
    plans = [planner.plan(model, belief, RewardCritic(), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(plans[0].actions, plans[1].actions) and 1 <= len(plans[0]) <= 2


# ---- by name, and bad input


def test_a_search_is_found_by_its_module_and_name():
    spec = f"reasoners?search={__name__}:Beam&settings={{'beam_size':3}}&max_depth=4"
    (planner,) = make_planners([spec], GridWorld().config).values()
    assert planner.search.beam_size == 3 and planner.max_depth == 4
    for wrong, said in (
        ("reasoners", "its settings are"),
        ("reasoners?search=reasoners.nowhere:MCTS", "cannot import"),
        (f"reasoners?search={__name__}:Beam&max_depth=0", "`max_depth` must be a whole number"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            make_planners([wrong], GridWorld().config)
    config = SimpleNamespace(action=TextAction(max_length=2))
    with pytest.raises(ValueError, match="TextAction cannot be drawn"):
        make_planners([f"reasoners?search={__name__}:Beam"], config)


def test_a_search_that_gives_no_way_is_told():
    world = GridWorld()
    for search, said in (
        (lambda world, config: SimpleNamespace(terminal_state=None), "took no step"),
        (lambda world, config: SimpleNamespace(terminal_state="(0, 3)"), "a `terminal_state` of this world"),
        (lambda world, config: world.step(world.init_state(), 9), "This world has the actions 0..4"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            ReasonersSearch(search).plan(world, world.root(), RewardCritic())
    with pytest.raises(ValueError, match="must be callable"):
        ReasonersSearch(3)
    with pytest.raises(ValueError, match="returned NaN"):
        ReasonersSearch(Beam()).plan(world, world.root(), not_a_number)
    with pytest.raises(ValueError, match="2 rows"):
        ReasonersWorld(world, world.root().select(torch.tensor([0, 0])), RewardCritic())


def test_the_published_searches_run_over_a_world():
    """MCTS and beam search of llm-reasoners itself, where it is installed."""
    algorithm = pytest.importorskip("reasoners.algorithm")
    world, target = GridWorld("S.#\n..#\n..G"), torch.tensor([2, 2])
    near = FunctionCritic(  # their beam search keeps equal states, so it needs to be led
        function=lambda futures: -(futures.codes["camera"][0] - target).abs().sum(-1).float(), threshold=0.0
    )
    for search, critic in (
        (algorithm.MCTS(n_iters=200, depth_limit=6, disable_tqdm=True), RewardCritic()),
        (algorithm.BeamSearch(beam_size=20, max_depth=6), near),
        (algorithm.BeamSearch(beam_size=20, max_depth=6, return_beam=True), near),
    ):
        plan = ReasonersSearch(search, max_depth=6).plan(world, world.root(), critic)
        assert plan.reaches_goal and len(plan) == 4 and plan.states[-1] == bytes([2, 2])
