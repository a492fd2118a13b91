"""Planners, critics and the agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fuzzing import values as v
from fuzzing.outcomes import FREE, SAME, WRONG
from fuzzing.targets import (
    Call,
    a_belief,
    an_output,
    given_of,
    misspelt,
    model_state,
    raw_observation,
    target,
    without_marks,
)
from fuzzing.worlds import World
from pan_hf import (
    CEM,
    ICEM,
    MCTS,
    MPPI,
    BeamSearch,
    Effort,
    FunctionCritic,
    GoalCritic,
    GraphSearch,
    PanAgent,
    RandomShooting,
    ReasonersSearch,
    RewardCritic,
    SimulationCache,
    StrategySearch,
)
from pan_hf.agents.policy import PolicyPlanner
from pan_hf.envs.imagined import ImaginedEnv


def a_critic(world: World):
    made = v.given(
        free=[
            lambda futures: -futures.reward,
            lambda futures: futures.reward.tolist(),
            lambda futures: futures.reward.numpy(),
            lambda futures: (futures.reward > 0).int(),
        ],
        wrong=[
            None,
            RewardCritic,
            "reward",
            0.5,
            lambda futures: None,
            lambda futures: futures.reward * v.NAN,
            lambda futures: futures.reward[:, 0],
            lambda futures: 1.0,
            lambda: 1.0,
        ],
    )
    return RewardCritic(threshold=2.0), v.listed("critic", made, "score", "function")


def a_generator():
    made = v.given(free=[None], wrong=[3, np.random.default_rng(0), "0"])
    return v.LEFT_OUT, v.listed("generator", made, "seed")


def _planned(planner, world: World) -> Callable:
    def plan(**given):
        given = {"generator": torch.Generator().manual_seed(0)} | {
            n: each for n, each in given.items() if each is not v.LEFT_OUT
        }
        return planner.plan(world.model, **given)

    return plan


def single_row(world: World, number: int):
    belief, changes = a_belief(world, 1, number)
    return belief, changes


@target("CEM.plan", ("discrete", "vector"))
def cem_plan(world: World, number: int) -> Call:
    planner = CEM(num_samples=3, horizon=1, num_iterations=2)
    arguments = {"belief": single_row(world, number), "critic": a_critic(world), "generator": a_generator()}
    return Call(_planned(planner, world), arguments, state=model_state(world))


@target("RandomShooting.plan", ("discrete", "vector"), weight=1)
def shooting_plan(world: World, number: int) -> Call:
    planner = RandomShooting(num_samples=3, horizon=1)
    arguments = {"belief": single_row(world, number), "critic": a_critic(world), "generator": a_generator()}
    return Call(_planned(planner, world), arguments, state=model_state(world))


@target("GraphSearch.plan", ("discrete",), weight=1)
def graph_plan(world: World, number: int) -> Call:
    planner = GraphSearch(max_states=6, max_depth=2, sampled_searches=1)
    arguments = {"belief": single_row(world, number), "critic": a_critic(world), "generator": a_generator()}
    return Call(_planned(planner, world), arguments, state=model_state(world))


@target("CEM", ("discrete",), numbers=1)
def cem_made(world: World, number: int) -> Call:
    arguments = {
        "num_samples": (4, v.count("num_samples", 4)),
        "horizon": (3, v.count("horizon", 3)),
        "num_iterations": (2, v.count("num_iterations", 2)),
        "elite_fraction": (0.5, v.number("elite_fraction", 0.5, 0, 1, open_low=True)),
        "smoothing": (0.5, v.number("smoothing", 0.5, 0, 1)),
        "initial_std": (1.0, v.number("initial_std", 1.0, 0, open_low=True)),
        "num_rollouts": (1, v.count("num_rollouts", 1)),
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "batch_size": (4, v.count("batch_size", 4)),
        **misspelt("num_sample", 3),
    }
    return Call(without_marks(CEM), arguments)


@target("GraphSearch", ("discrete",), numbers=1)
def graph_made(world: World, number: int) -> Call:
    made = v.given(same=[[0, 1]], free=[np.array([0, 1]), "left", 3, ["left"]], wrong=[[-1], "", [], [0.5], 0.5])
    arguments = {
        "max_states": (10, v.count("max_states", 10)),
        "batch_size": (4, v.count("batch_size", 4)),
        "max_depth": (3, v.count("max_depth", 3)),
        "actions": ((0, 1), v.listed("actions", made)),
        "key_levels": (1, v.count("key_levels", 1, optional=True)),
        "sampled_searches": (0, v.count("sampled_searches", 1, least=0)[6:]),
        **misspelt("depth", 3),
    }
    return Call(without_marks(GraphSearch), arguments)


def shooting_settings() -> dict:
    return {
        "num_samples": (4, v.count("num_samples", 4)),
        "horizon": (3, v.count("horizon", 3)),
        "num_iterations": (2, v.count("num_iterations", 2)),
        "num_rollouts": (1, v.count("num_rollouts", 1)),
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "batch_size": (4, v.count("batch_size", 4)),
        "noise_beta": (1.0, v.number("noise_beta", 1.0, low=0)),
        "objective": ("critic", v.choice("objective", "critic")),
    }


def search_settings(*counts: str) -> dict:
    numbers = {name: (4, v.count(name, 4)) for name in (*counts, "batch_size")}
    return numbers | {
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "key_levels": (1, v.count("key_levels", 1, optional=True)),
    }


def outcome_settings() -> dict:
    return search_settings("budget", "max_depth", "num_outcomes") | {
        "coverage": (0.5, v.number("coverage", 0.5, 0, 1, open_low=True)),
        "enough": (0.5, v.number("enough", 0.5, low=0)),
    }


def _planner_made(planner: type, settings: Callable[[], dict]) -> None:
    """A target of a planner's settings."""

    @target(planner.__name__, ("discrete",), weight=1, numbers=1)
    def make(world: World, number: int) -> Call:
        return Call(without_marks(planner), settings() | misspelt("horizons", 3))


_planner_made(
    ICEM,
    lambda: (
        shooting_settings()
        | {
            "shrinking": (1.5, v.number("shrinking", 1.5, low=1)),
            "keep_fraction": (0.5, v.number("keep_fraction", 0.5, 0, 1)),
        }
    ),
)
_planner_made(
    MPPI,
    lambda: (
        shooting_settings()
        | {
            "sharpness": (2.0, v.number("sharpness", 2.0, low=0)),
            "noise_std": (0.5, v.number("noise_std", 0.5, low=0, open_low=True)),
        }
    ),
)
_planner_made(BeamSearch, lambda: search_settings("beam_size", "horizon", "num_actions"))
_planner_made(StrategySearch, outcome_settings)
_planner_made(
    MCTS,
    lambda: (
        outcome_settings()
        | {
            "exploration": (1.0, v.number("exploration", 1.0, low=0)),
            "widening": (0.5, v.number("widening", 0.5, 0, 1)),
            "rollout_steps": (0, v.count("rollout_steps", 1, least=0)[6:]),
            "prior": (None, v.listed("prior", v.given(wrong=[3, "uniform"]))),
        }
    ),
)
_planner_made(
    ReasonersSearch,
    lambda: (
        search_settings("max_depth", "num_actions")
        | {
            "search": (
                len,
                v.listed("search", v.given(same=["builtins:len"], wrong=[None, 3, "len", "os:sep", "os:no"])),
            ),
            "settings": (None, v.listed("settings", v.given(free=[{}], wrong=[3, "depth", [3]]))),
            "looks_ahead": (True, v.flag("looks_ahead", True)),
        }
    ),
)
_planner_made(
    PolicyPlanner,
    lambda: {
        "folder": ("policy", v.listed("folder", v.given(free=[Path("policy")], wrong=[None, 3, "", ["policy"]]))),
        "sampled": (False, v.flag("sampled", False)),
    },
)


@target("SimulationCache", ("discrete",), weight=1, numbers=1)
def cache_made(world: World, number: int) -> Call:
    folder, changes = an_output("path")
    arguments = {
        "path": (folder, [each for each in changes if each().value != folder.parent / "other"]),  # files may lie there
        "max_entries": (10, v.count("max_entries", 10)),
        "radius": (0.1, v.number("radius", 0.1, low=0)),
        "least_reach": (0.5, v.number("least_reach", 0.5, 0, 1)),
        "least_abstract_reach": (0.5, v.number("least_abstract_reach", 0.5, 0, 1)),
        "on_stale": ("keep", v.choice("on_stale", "keep", ["drop", "refuse"])),
        "create": (True, v.flag("create", True)),
        "writes": (True, v.flag("writes", True)),
        "scope": ("world", v.listed("scope", v.given(free=[None], wrong=[3, "", ["world"]]))),
        "task": (None, v.listed("task", v.given(free=["go"], wrong=[3, "", ["go"]]))),
        **misspelt("radios", 0.1),
    }
    return Call(
        lambda **given: repr(type(without_marks(SimulationCache)(**given))),
        arguments,
        state=(folder.parent,),
        is_pure=False,
    )


@target("ImaginedEnv", ("discrete", "vector"), weight=1)
def imagined_env(world: World, number: int) -> Call:
    class Starts:
        def draw(self, count: int, rng: np.random.Generator):
            return world.belief(count, number)

    arguments = {
        "model": (world.model, v.listed("model", v.given(wrong=[None, "runs/mine", world.processor]))),
        "starts": (Starts(), v.listed("starts", v.given(wrong=[None, Starts, world.belief(1), [world.belief(1)]]))),
        "render_mode": (None, v.listed("render_mode", v.given(free=["rgb_array"], wrong=["human", 3, ["rgb_array"]]))),
        "horizon": (2, v.count("horizon", 2)),
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "uncertainty_penalty": (0.1, v.number("uncertainty_penalty", 0.1, low=0)),
        "measures_entropy": (True, v.flag("measures_entropy", True)),
        "observation": ("state", v.choice("observation", "state", ["senses"])),
        **misspelt("horizons", 3),
    }

    def step(model, starts, **given):
        env = ImaginedEnv(model, world.processor, starts, **given_of(given))
        env.reset(seed=3)
        env.action_space.seed(3)
        return env.step(env.action_space.sample())

    return Call(step, arguments, state=model_state(world))


@target("RewardCritic", ("discrete",), weight=1, numbers=1)
def reward_critic(world: World, number: int) -> Call:
    arguments = {
        "threshold": (0.5, v.number("threshold", 0.5)),
        "discount": (0.9, v.number("discount", 0.9, 0, 1, open_low=True)),
        "ends_episode": (False, v.flag("ends_episode", False)),
        **misspelt("treshold", 0.5),
    }
    return Call(without_marks(RewardCritic), arguments)


@target("FunctionCritic", ("discrete",), weight=1, numbers=1)
def function_critic(world: World, number: int) -> Call:
    made = v.given(wrong=[None, 3, "os:getcwd"])
    arguments = {"function": (len, v.listed("function", made)), "threshold": (0.5, v.number("threshold", 0.5))}
    return Call(FunctionCritic, arguments)


@target("GoalCritic.from_observation", weight=2)
def goal_critic(world: World, number: int) -> Call:
    coded = list(world.model.config.coded_senses)
    observation, changes = raw_observation(world, 1, number, senses=coded)  # the others are not looked at
    made = v.given(same=[tuple(coded), coded, None], wrong=["touch", ["touhc"], [], 3, [3], ["mission"]])
    arguments = {
        "observation": (observation, changes),
        "senses": (None if number % 2 else coded, v.listed("senses", made, "sense")),
        "threshold": (1.0, v.number("threshold", 1.0)),
        "tolerance": (0.02, v.number("tolerance", 0.02, low=0)),
        "discount": (0.9, v.number("discount", 0.9, 0, 1, open_low=True)),
    }

    def make(**given):
        return GoalCritic.from_observation(world.model, world.processor, **given)

    return Call(make, arguments, state=model_state(world))


@target("PanAgent", ("discrete", "vector"), weight=1)
def agent_made(world: World, number: int) -> Call:
    planners = v.given(wrong=[None, CEM, "cem", 3])
    others = v.given(wrong=[None, "runs/mine", 3])
    arguments = {
        "model": (world.model, v.listed("model", others)),
        "processor": (world.processor, v.listed("processor", others)),
        "critic": (RewardCritic(), a_critic(world)[1][:4]),
        "planner": (CEM(num_samples=2, horizon=1), v.listed("planner", planners)),
        "replan": ("always", v.choice("replan", "always", ["at_end", "on_surprise"])),
        "seed": (3, v.seed("seed")),
        "patience": (2, v.count("patience", 2)),
    }
    return Call(lambda **given: PanAgent(**given).replan, arguments, state=model_state(world))


@target("PanAgent.act", ("discrete", "vector"))
def agent_act(world: World, number: int) -> Call:
    planner = RandomShooting(num_samples=2, horizon=1)
    agent = PanAgent(world.model, world.processor, RewardCritic(threshold=2.0), planner, "always")
    agent.act(
        {name: value[0] if not isinstance(value, str) else value for name, value in world.raw(1, number).items()}
    )
    first = {
        name: value[0] if not isinstance(value, str) else value for name, value in world.raw(1, number + 1).items()
    }
    made: dict = {}
    for sense, value in first.items():
        kind = world.model.config.senses[sense].kind
        listed = v.words([value])[3:] if kind == "text" else v.array(value[None], kind, value.ndim)
        made[sense] = [(what, FREE if expects == SAME else expects, each) for what, expects, each in listed]
        if kind != "text":
            made[sense] += [
                ("as its list", SAME, value.tolist),
                ("as its tensor", SAME, lambda value=value: torch.from_numpy(value.copy())),
            ]
    arguments = {
        "observation": (first, v.entries("observation", first, made, may_have_more=True)),
        "reward": (0.0, v.number("reward", 0.0, optional=True)),
    }

    def state() -> dict:
        return {
            "statistics": {"decisions": agent.statistics.decisions, "surprises": agent.statistics.surprises},
            "observations": list(agent.observations),
            "actions": list(agent.actions),
            "plan": None if agent.plan is None else agent.plan.actions,
            "generator": agent.generator.get_state(),
        }

    return Call(agent.act, arguments, state=(*model_state(world), state), is_pure=False)


@target("PanAgent.reset", ("discrete",), weight=1)
def agent_reset(world: World, number: int) -> Call:
    agent = PanAgent(world.model, world.processor, RewardCritic(), CEM(num_samples=2, horizon=1), "always")
    made = v.given(free=[None, "key " * 99], wrong=[3, ["go"]])
    return Call(agent.reset, {"task": ("go", v.listed("task", made)), "seed": (3, v.seed("seed"))}, is_pure=False)


@target("make_planners", ("discrete",), weight=1, numbers=1)
def planners_made(world: World, number: int) -> Call:
    from pan_hf.agents.registry import make_planners

    given = ["cem?horizon=3", "random_shooting", "graph?max_depth=2"]
    wrong = ["cme", "cem?horizons=3", "cem?horizon", "cem?horizon=-1", "cem?horizon=x", "cem?=3", "cem??horizon=3", ""]
    wrong += [
        "CEM",
        "cem?horizon=3&horizon=4",
        "cem?horizon=None",
        "cem?temperature=nan",
        "graph?actions=",
        " cem",
    ]
    wrong += ["cem?horizon=3?horizon=4", "os:system", "cem?horizon=[3]", "cem?num_samples=0.5", "graph?max_depth=1e9"]
    made = [(f"with {text!r}", WRONG, lambda text=text: [text]) for text in wrong]
    made += v.given(same=[tuple(given)], free=[None, "cem"], wrong=[3, [3], [], ["cem", "cem"]])
    arguments = {"specs": (given, v.listed("specs", made, "planner", "cem", "graph"))}
    return Call(lambda specs: make_planners(specs, world.model.config), arguments)


@target("Effort", ("discrete",), weight=1, numbers=1)
def effort_made(world: World, number: int) -> Call:
    arguments = {
        "price": (0.5, v.number("price", 0.5, low=0, optional=True)),
        "task": ("planning", v.choice("task", "planning", ["pixels"])),
        "least_change": (0.1, v.number("least_change", 0.1, 0, 1, optional=True)),
        **misspelt("prices", 0.5),
    }
    return Call(without_marks(Effort), arguments)


@target("parse_effort", ("discrete",), weight=1, numbers=1)
def effort_parsed(world: World, number: int) -> Call:
    from pan_hf.agents.world import parse_effort

    wrong = [
        "price=",
        "price=x",
        "cost=3",
        "price=0.1,price=0.2",
        "=3",
        "price=nan",
        "price=-1",
        "task=nothing",
        "cap=0",
    ]
    wrong += ["price=0.1,cap=0.5", "price=0.1,auto", "", ",", "price==1"]
    made = [(f"= {text!r}", WRONG, lambda text=text: text) for text in wrong]
    made += v.given(wrong=[3, None, ["all"]])
    return Call(
        parse_effort, {"text": ("price=0.5,task=planning", v.listed("text", made, "effort", "price", "cap", "task"))}
    )
