"""`pan plan`, in a real environment with a real (untrained) model."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pan_hf import console
from pan_hf.agents.agent import PanAgent
from pan_hf.agents.critics import GoalCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.registry import make_planners
from pan_hf.agents.shooting import CEM, RandomShooting
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_recorded_environment
from pan_hf.evaluation import control, trials
from pan_hf.evaluation.acting import RecordedFacts, reward_critic
from pan_hf.evaluation.control import RANDOM, plan, trial_records
from pan_hf.evaluation.summary import planning_summary
from pan_hf.evaluation.trials import Outcome, Trial, run_trials
from pan_hf.modeling import DiscreteAction, ImageSense, PanModel, VectorAction, VectorSense
from pan_hf.reporting.figures import load_film
from pan_hf.reporting.results import read_records, wilson
from pan_hf.reporting.tables import select
from pan_hf.tokenization.processing_pan import PanProcessor
from pan_hf.tokenization.tokenization_pan import PanTokenizer


class Corridor(gymnasium.Env):
    """Six cells in a row; the agent is a white one, and steps left, right or not at all. The last cell pays 1."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(0, 255, (16, 24, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def frame(self):
        frame = np.zeros((2, 6, 3), np.uint8)
        frame[self.cell // 6, self.cell % 6] = 255
        return frame.repeat(8, axis=0).repeat(4, axis=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(4)), 0
        return self.frame(), {}

    def step(self, action):
        self.cell = int(np.clip(self.cell + action - 1, 0, 11))
        self.steps += 1
        done = self.cell == 5
        return self.frame(), float(done), done, self.steps >= 12, {}


gymnasium.register("pan_test/Corridor-v0", entry_point=Corridor)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with a recording of the corridor and an untrained checkpoint for it."""
    root = tmp_path_factory.mktemp("run")
    record("pan_test/Corridor-v0", root / "data", episodes=12, progress=False)
    torch.manual_seed(0)
    backbone = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            tie_word_embeddings=True,
        )
    )
    camera = ImageSense(height=16, width=24, patch_size=4, hidden_size=16, codebook_size=[8, 8])
    model = PanModel.from_backbone(backbone, senses={"camera": camera}, action=DiscreteAction(3))
    tokenizer = PanTokenizer.train(["go left", "go right"] * 20, vocab_size=300)
    processor = PanProcessor(tokenizer, senses={"camera": camera.to_dict()}, action=DiscreteAction(3).to_dict())
    model.save_pretrained(root / "checkpoint")
    processor.save_pretrained(root / "checkpoint")
    about = {"fingerprints": [], "environments": ["pan_test/Corridor-v0"], "root": str(root / "data")}
    (root / "checkpoint" / "training_data.json").write_text(json.dumps(about))
    return root


SMALL = [
    "graph?max_states=20",
    "cem?num_samples=4&horizon=3&num_iterations=2",
    "random_shooting?num_samples=8&horizon=3",
]


@pytest.mark.slow
def test_pan_plan_writes_records_and_films_beside_a_random_policy(run_dir):
    records = plan(run_dir, planners=SMALL, episodes=3, success="reward>0", progress=False)
    assert read_records(run_dir / "planning.json") == records
    models = {entry.model for entry in records}
    assert models == {"random_policy", *(f"pan/{name}" for name in ("graph", "cem", "random_shooting"))}
    for model in models:
        found = {entry.metric: entry for entry in select(records, model=model)}
        won = round(3 * found["success"].value)
        assert (found["success_low"].value, found["success_high"].value) == pytest.approx(wilson(won, 3))
        assert found["success"].seeds == [10_000, 10_001, 10_002] and found["episodes"].value == 3
        assert ("seconds_per_decision" in found) == (model != "random_policy")
    films = sorted((run_dir / "report" / "films").glob("*.npz"))
    assert films
    for path in films:
        film = load_film(path)
        assert film.imagined.shape == film.carried_out.shape == (len(film.actions) + 1, 16, 24, 3)
        assert film.success == path.stem.endswith("success")


@pytest.mark.slow
def test_the_time_limit_stops_after_the_episode_at_hand(run_dir, tmp_path):
    records = plan(run_dir, planners=SMALL[:1], episodes=50, time_limit=0.3, output=tmp_path, progress=False)
    played = {entry.model: entry.value for entry in select(records, metric="episodes")}
    assert played and all(1 <= count < 50 or model == "random_policy" for model, count in played.items())


class Clock:
    """Time goes by with the steps of an environment, a second each, whose episodes have some steps."""

    action_space = SimpleNamespace(seed=lambda seed: None)

    def __init__(self, *lengths: int):
        self.seconds, self.lengths = 0.0, list(lengths)

    def perf_counter(self):
        return self.seconds

    def reset(self, seed):
        self.left = self.lengths.pop(0)
        return {}, {}

    def sample_action(self, rng):
        return 0

    def step(self, action):
        self.seconds, self.left = self.seconds + 1, self.left - 1
        return {}, 0.0, self.left == 0, False, {}


def played_by(clock, count, time_limit, monkeypatch, **limits):
    monkeypatch.setattr(trials, "time", clock)
    played = [Trial("A-v0", clock, f"policy{number}", None, lambda ending: None, 10**6) for number in range(count)]
    run_trials(played, list(range(9)), time_limit, progress=False, **limits)
    return [[(outcome.steps, outcome.was_given_up) for outcome in trial.outcomes] for trial in played]


def test_the_time_limit_bounds_all_that_is_played_and_counts_nothing_that_it_cut(monkeypatch):
    clock = Clock(4, 4, 4)
    assert played_by(clock, 1, 10.0, monkeypatch) == [[(4, False), (4, False)]] and clock.seconds == 11
    clock = Clock(10**9, 10**9)  # a first episode is given up after its share, so that each policy has one
    assert played_by(clock, 2, 10.0, monkeypatch) == [[(6, True)], [(6, True)]] and clock.seconds == 12
    clock = Clock(10**9, 10**9)
    clock.seconds = 6.0  # that loading took
    assert played_by(clock, 2, 10.0, monkeypatch, start=0.0) == [[(3, True)], [(3, True)]]
    clock = Clock(10**9, 10**9, 10**9)  # and one that takes too long is a failure, as long as there is time
    assert played_by(clock, 1, 10.0, monkeypatch, episode_time_limit=3.0) == [[(4, True), (4, True)]]


def test_what_is_known_so_far_is_told_once_an_episode_and_not_computed_in_every_step(monkeypatch):
    told = []
    monkeypatch.setattr(trials, "_so_far", lambda trials: told.append(1) or "")
    played_by(Clock(*[50] * 9), 1, None, monkeypatch)
    assert len(told) <= 2 * 9


@pytest.mark.slow
def test_an_interrupted_plan_keeps_the_finished_episodes(run_dir, tmp_path):
    calls = []

    def interrupt(env, reward, terminated, info):
        calls.append(terminated)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return terminated

    with pytest.raises(KeyboardInterrupt):
        plan(run_dir, planners=SMALL[:1], episodes=5, success=interrupt, output=tmp_path, progress=False)
    played = select(read_records(tmp_path / "planning.json"), metric="episodes")
    assert sum(entry.value for entry in played) == 3


def test_an_environment_is_closed_where_the_next_one_cannot_be_made(run_dir, tmp_path, monkeypatch):
    made, closed = [], []

    def make(entry, *settings):
        if made:
            raise ValueError("there is one only")
        made.append(make_recorded_environment(entry, *settings))
        return made[0]

    monkeypatch.setattr(control, "choose_environments", lambda entries, wanted: entries * 2)
    monkeypatch.setattr(control, "make_recorded_environment", make)
    monkeypatch.setattr(Corridor, "close", lambda self: closed.append(self))
    with pytest.raises(ValueError, match="there is one only"):
        plan(run_dir, planners=SMALL[:1], output=tmp_path, progress=False)
    assert closed == [made[0].unwrapped]


def test_seeds_of_the_recording_are_refused(run_dir, tmp_path):
    used = load_trajectories(run_dir / "data", "train").seeds[0]
    with pytest.raises(ValueError, match="not unseen"):
        plan(run_dir, seed=int(used) - 1, episodes=3, output=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planners": ["astar"]}, "Unknown planner 'astar'"),
        ({"planners": ["cem?width=3"]}, "its settings are"),
        ({"environments": ["MiniGrid-Empty-8x8-v0"]}, "not in the recording"),
        ({"episodes": 0}, "at least 1"),
        ({"explain": "first"}, "`explain` names steps from 0 on, or 'last', as in '0,5,last'; got 'first'"),
    ],
)
def test_what_pan_plan_cannot_do_is_said_before_anything_is_written(run_dir, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(run_dir, output=tmp_path, progress=False, **options)
    assert not list(tmp_path.iterdir())


def test_the_goal_is_read_from_the_recording():
    sparse = RecordedFacts(rewards=(0.9, 0.5), reward_ends=True)
    critic = reward_critic(sparse)
    assert critic == RewardCritic(threshold=critic.threshold, ends_episode=True)
    assert critic.threshold == pytest.approx(0.35)
    dense = RecordedFacts(rewards=(0.1, 0.5), reward_ends=False)
    assert reward_critic(dense).threshold == pytest.approx(0.45) and not reward_critic(dense).ends_episode
    assert reward_critic(sparse, threshold=0.1).threshold == 0.1
    assert reward_critic(None) == RewardCritic()
    # MountainCar and Acrobot cost a point a step, and pay for nothing
    assert reward_critic(RecordedFacts(num_steps=100)).threshold == math.inf
    assert reward_critic(RecordedFacts(num_steps=100), threshold=0.1) == RewardCritic(threshold=0.1)


def test_a_reward_that_most_steps_bring_is_no_goal(run_dir, tmp_path, monkeypatch):
    every_step = RecordedFacts(rewards=(1.0,) * 90, num_steps=100)
    assert reward_critic(every_step).threshold == math.inf
    assert reward_critic(every_step, threshold=2.0).threshold == 2.0
    assert reward_critic(RecordedFacts(rewards=(1.0,) * 9, num_steps=100)).threshold == pytest.approx(0.9)
    config = SimpleNamespace(action=DiscreteAction(3))
    assert list(make_planners(None, config, has_goal=False)) == ["cem", "random_shooting"]
    with pytest.raises(ValueError, match="most recorded steps are rewarded"):
        make_planners(["graph"], config, has_goal=False)


@pytest.mark.slow
def test_without_a_goal_return_and_steps_come_first_and_no_success_is_claimed(run_dir, tmp_path):
    records = plan(run_dir, planners=SMALL[1:2], episodes=2, output=tmp_path, progress=False)
    by_model = {model: [entry.metric for entry in select(records, model=model)] for model in ("pan/cem", RANDOM)}
    assert all(metrics[:2] == ["return", "steps"] for metrics in by_model.values())
    assert not any("success" in entry.metric for entry in records)
    (film,) = (tmp_path / "report" / "films").glob("*.npz")
    assert film.stem.endswith("episode") and load_film(film).success is None
    said = planning_summary(records)
    assert said.splitlines()[0].split() == ["pan_test/Corridor-v0", "return", "steps", "episodes"]
    assert "--success" in said and len(said.splitlines()) == 4


@pytest.mark.slow
def test_what_an_environment_raises_is_told_with_where_and_when(run_dir, tmp_path, monkeypatch):
    def step(self, action):
        raise RuntimeError("the motor is stuck")

    monkeypatch.setattr(Corridor, "step", step)
    place = r"Corridor-v0, pan/cem, episode 0 \(seed 10000\), step 0: .* raised RuntimeError: the motor is stuck"
    with pytest.raises(ValueError, match=place):
        plan(run_dir, planners=SMALL[1:2], episodes=2, output=tmp_path, progress=False)


def test_an_empty_text_is_no_way_to_replan(run_dir, tmp_path):
    with pytest.raises(ValueError, match="`replan` must be one of .* got ''"):
        plan(run_dir, planners=SMALL[1:2], replan="", episodes=1, output=tmp_path, progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"success": 3},
        {"episodes": True},
        {"time_limit": 0},
        {"time_limit": math.nan},
        {"episode_time_limit": -1.0},
        {"max_steps": 0},
        {"seed": -1},
    ],
)
def test_limits_of_planning_are_checked_first(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan("nowhere", **wrong)


@pytest.mark.slow
def test_a_redirected_plan_says_how_far_it_is_and_by_when_it_ends(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "ELSEWHERE", 0.0)
    plan(run_dir, planners=SMALL[1:2], episodes=1, output=tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("planning in 600 s at most: 0 of 2 episodes")
    assert any("pan/cem, episode 1, step 2" in line for line in lines)


def test_a_goal_picture_is_reached_when_it_is_what_is_seen(run_dir):
    model = PanModel.from_pretrained(run_dir / "checkpoint").eval()
    processor = PanProcessor.from_pretrained(run_dir / "checkpoint")
    env = Corridor()
    frame, _ = env.reset(seed=0)
    critic = GoalCritic.from_observation(model, processor, {"camera": frame})
    belief = model.perceive(**processor(observation={"camera": frame}))
    now = SimpleNamespace(codes={name: [level[:, None] for level in codes] for name, codes in belief.codes.items()})
    assert critic.score(now).item() == 1.0


def test_a_goal_may_be_about_some_of_the_senses():
    from tiny_worlds import acts, observe, world_model

    model = world_model(("camera", "touch", "mission"))
    senses = {name: sense.to_dict() for name, sense in model.config.senses.items()}
    processor = PanProcessor(PanTokenizer.train(["go"] * 20, vocab_size=300), senses)
    touch = np.array([0.5, 1.0, 2.0], np.float32)
    critic = GoalCritic.from_observation(model, processor, {"touch": touch, "sound": 3})
    assert set(critic.vectors) == {"touch"} and not critic.codes
    camera = np.zeros((16, 16, 3), np.uint8)
    assert set(GoalCritic.from_observation(model, processor, {"camera": camera}).codes) == {"camera"}
    futures = model.simulate(model.perceive(observe(model, 1)), acts(model, 1, 2), temperature=0.0)
    assert critic.score(futures).shape == (1, 2)
    for given, wanted in (({"camera": camera}, ["touch"]), ({"mission": "go"}, None)):
        with pytest.raises(ValueError, match="goal"):
            GoalCritic.from_observation(model, processor, given, senses=wanted)
    for name, near in (("cameras", "camera"), ("camrea", "camera"), ("misson", "mission")):
        with pytest.raises(ValueError, match=f"has '{name}' and lacks the sense '{near}'; rename it"):
            GoalCritic.from_observation(model, processor, {"touch": touch, name: camera})


def test_cem_plans_vector_actions_in_a_real_model():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    backbone = Qwen3Config(vocab_size=320, num_hidden_layers=1, head_dim=16, **sizes)
    senses = {"at": VectorSense(dim=2, low=0.0, high=1.0)}
    action = VectorAction(dim=2, low=[0.0, -1.0], high=[1.0, 1.0])
    torch.manual_seed(0)
    model = PanModel.from_backbone(Qwen3ForCausalLM(backbone), senses=senses, action=action).eval()
    tokenizer = PanTokenizer.train(["go"] * 20, vocab_size=300)
    processor = PanProcessor(tokenizer, {"at": senses["at"].to_dict()}, action.to_dict())
    goal = {"at": np.array([0.9, 0.1])}
    # an untrained model may imagine anything, but a plan is cut where its goal is reached or its episode ends
    torch.nn.init.constant_(model.outcome.out.bias, 10.0)
    for critic in (RewardCritic(threshold=1e3), GoalCritic.from_observation(model, processor, goal, threshold=2.0)):
        agent = PanAgent(model, processor, critic, CEM(num_samples=8, horizon=3, num_iterations=2), replan="at_end")
        for _ in range(4):
            chosen = agent.act({"at": np.array([0.2, 0.3], np.float32)}, reward=0.0)
            assert chosen.shape == (2,) and 0 <= chosen[0] <= 1 and -1 <= chosen[1] <= 1
        assert agent.statistics.replans == 2


def test_a_model_that_has_grown_an_action_plans_in_a_world_without_it():
    from tiny_worlds import acts, observe, world_model

    from pan_hf.agents.world import within as _within
    from pan_hf.modeling import DiscreteAction

    model = world_model(("camera",), action=DiscreteAction(4, names=["a", "b", "c", "throw"]))

    def features(n):
        return {"action": {"kind": "discrete", "n": n}}

    world = _within(model, "World-v0", features(3))
    assert world.config.action.num_actions == 3 and model.config.action.num_actions == 4
    belief = world.perceive(observe(model, 1, 1))
    plans = [
        planner.plan(world, belief, RewardCritic(), generator=torch.Generator().manual_seed(0))
        for planner in (GraphSearch(max_states=4), RandomShooting(64, 2), CEM(64, 2, 2))
    ]
    assert all(int(plan.actions.max()) < 3 for plan in plans)
    assert world.simulate(belief, acts(model, 1, 1)).reward.shape == (1, 1)
    assert _within(model, "World-v0", features(4)) is model
    with pytest.raises(ValueError, match="train one for it"):
        _within(model, "World-v0", features(5))


def test_an_episode_that_the_clock_cut_short_counts_for_no_return():
    """Two steps of a world that costs a point a step would look better than a whole episode."""
    trial = Trial("Acrobot-v1", None, "pan/cem", None, None, 500)
    trial.outcomes = [Outcome(0, False, 2, -2.0, was_given_up=True), Outcome(1, True, 90, -89.0)]
    values = {entry.metric: entry.value for entry in trial_records(trial)}
    assert (values["return"], values["steps"], values["success"]) == (-89.0, 90.0, 0.5)
    assert (values["given_up"], values["episodes"], values["failures"]) == (1.0, 2.0, 1.0)
    assert [entry.seeds for entry in trial_records(trial) if entry.metric == "failures"] == [[0]]
    trial.outcomes = trial.outcomes[:1]
    assert not {"return", "steps"} & {entry.metric for entry in trial_records(trial)}


def test_goals_that_searches_found_are_counted_before_and_after_the_second_look():
    """Four claims were found, one was refused; of three acted on one was not there: 2 of 4 were none without it."""
    found = [
        Outcome(seed, True, 5, 1.0, claims=claims, refused=refused, promised=promised, broken=broken)
        for seed, (claims, refused, promised, broken) in enumerate([(2, 1, 1, 0), (2, 0, 2, 1)])
    ]
    trial = Trial("e", None, "graph", SimpleNamespace(cache=None, policy=None, model=None), None, 5, outcomes=found)
    told = {entry.metric: entry.value for entry in trial_records(trial)}
    low, high = wilson(1, 3)
    wanted = {"claims": 4, "claims_refused": 0.25, "claims_acted_on": 3, "claims_false": 1 / 3}
    wanted |= {"claims_false_low": low, "claims_false_high": high, "claims_false_unconfirmed": 0.5}
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)
    said = planning_summary(trial_records(trial))
    assert (
        "pan/graph, ways to the goal: 4 found, 25.0% refused on a second look; 3 acted on, 33.3% were not there"
        in said
    )
    silent = replace(trial, label="cem", outcomes=[Outcome(0, True, 5, 1.0)])
    assert not [entry for entry in trial_records(silent) if entry.metric.startswith("claims")]
    assert "ways to the goal:" not in planning_summary(trial_records(silent))
