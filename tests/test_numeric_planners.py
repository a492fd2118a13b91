"""iCEM, MPPI and what a sequence is worth, with a point that is moved by numbers."""

import re
from types import SimpleNamespace

import pytest
import torch
from mazes import GridBelief, GridWorld, PointWorld, _with, not_a_number, processor

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.critics import GoalCritic, RewardCritic
from pan_hf.agents.icem import ICEM, SampledPlan
from pan_hf.agents.mppi import MPPI
from pan_hf.agents.plan import Plan
from pan_hf.agents.planner import Problem
from pan_hf.agents.registry import make_planners
from pan_hf.agents.shooting import CEM, Imagined, RandomShooting, colored_noise
from pan_hf.modeling import DiscreteAction, TextAction, VectorAction
from pan_hf.modeling.state_pan import Actions

CRITIC = RewardCritic(threshold=1.0, discount=1.0)  # a threshold that no step reaches
DISTANCE = float(PointWorld.target.norm())
BEST = -sum(DISTANCE * (1 - step / 3) for step in (1, 2, 3))  # three steps along the straight line, then rest


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def origin():
    return GridBelief(torch.zeros(1, 2))


@pytest.mark.parametrize("planner", [ICEM(64, 4, 6), MPPI(128, 4, 12, sharpness=10), ICEM(64, 4, 6, objective="path")])
def test_numbers_are_steered_within_their_bounds(planner):
    plan = planner.plan(PointWorld(), origin(), CRITIC, generator=seeded())
    assert plan.actions.shape == (4, 2) and not plan.reaches_goal
    places = plan.actions.cumsum(0)
    worth = float(-(places - PointWorld.target).norm(dim=-1).sum())
    assert BEST - 0.6 < worth <= BEST + 1e-4


class Mass(PointWorld):
    """A mass on a line, pushed towards 8: what counts is many pushes the same way."""

    def __init__(self):
        super().__init__()
        self.config.action = VectorAction(dim=1, low=-1.0, high=1.0)

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        speeds = belief.cells[:, 1:] + actions[..., 0].cumsum(1) * 0.1
        places = belief.cells[:, :1] + speeds.cumsum(1)
        reward = -(places - 8).abs() / 8
        after = GridBelief(torch.stack([places[:, -1], speeds[:, -1]], -1))
        return SimpleNamespace(reward=reward, continue_prob=torch.ones_like(reward), belief=after)


def test_icem_plans_better_than_cem_with_half_the_samples():
    spent, worth = {}, {}
    for planner in (CEM(64, 20, 4), ICEM(40, 20, 4), ICEM(40, 20, 4, noise_beta=0)):
        plans = [planner.plan(Mass(), origin(), CRITIC, generator=seeded(seed)) for seed in range(8)]
        name = type(planner).__name__, getattr(planner, "noise_beta", None)
        spent[name], worth[name] = plans[0].num_simulated, sum(plan.expected_return for plan in plans) / 8
    assert spent["ICEM", 2.0] < 0.5 * spent["CEM", None]
    # 80 000 imagined steps of CEM reach -8.36
    assert worth["ICEM", 2.0] > worth["CEM", None] + 1 and worth["ICEM", 2.0] > worth["ICEM", 0] + 1


def test_iterations_shrink_to_twice_the_elites():
    world, sizes = PointWorld(), []
    inner = world.simulate

    def noting(belief, actions, **kwargs):
        sizes.append(len(actions))
        return inner(belief, actions, **kwargs)

    world.simulate = noting
    ICEM(80, 3, 5, shrinking=2, elite_fraction=0.1, keep_fraction=0.5).plan(world, origin(), CRITIC)
    # 8 elites, of which 4 stay; the last iteration tries the mean, too
    assert sizes == [80, 40 + 4, 20 + 4, 16 + 4, 16 + 4 + 1]


def test_colored_noise_is_of_variance_one_and_the_smoother_the_larger_beta():
    alike = []
    for beta in (0.0, 1.0, 2.0, 4.0):
        noise = colored_noise((20_000, 12, 1), beta, seeded())[..., 0]
        assert noise.var() == pytest.approx(1, abs=0.03)
        alike.append(float((noise[:, 1:] * noise[:, :-1]).mean()))
    assert alike[0] == pytest.approx(0, abs=0.02) and alike == sorted(alike) and alike[-1] > 0.8
    assert colored_noise((3, 1, 2), 2.0, seeded()).shape == (3, 1, 2)


def control(planner, seed, is_warm, steps=12):
    """What model-predictive control brings in all."""
    world, belief, draws, left, total = Mass(), origin(), seeded(seed), None, 0.0
    for _ in range(steps):
        plan = planner.plan(world, belief, CRITIC, generator=draws, previous=left if is_warm else None)
        futures = world.simulate(belief, plan.actions[None, :1])
        belief, total, left = futures.belief, total + float(futures.reward), plan.rest(1)
    return total


@pytest.mark.parametrize("planner", [ICEM(24, 12, 2), MPPI(24, 12, 1)])
def test_a_plan_that_begins_where_the_last_one_ended_is_better(planner):
    warm, cold = (sum(control(planner, seed, is_warm) for seed in range(6)) for is_warm in (True, False))
    assert warm > cold + 1


def test_what_is_left_of_a_plan_has_its_elites():
    plan = ICEM(32, 6, 2).plan(PointWorld(), origin(), CRITIC, generator=seeded())
    left = plan.rest(1)
    assert isinstance(left, SampledPlan) and len(left) == 5 and plan.rest(6) is None
    assert torch.equal(left.actions, plan.actions[1:])
    assert torch.equal(left.elites["action"], plan.elites["action"][:, 1:])
    plain = Plan(actions=plan.actions[2:], expected_return=0.0, states=None, num_simulated=0, seconds=0.0)
    assert len(MPPI(8, 6, 1).plan(PointWorld(), origin(), CRITIC, previous=plain)) == 6


def test_an_agent_hands_the_rest_of_its_plan_to_the_planner():
    world, given = PointWorld(), []
    world.device, world.config.senses = torch.device("cpu"), {"at": SimpleNamespace(kind="vector")}
    world.perceive = lambda observation, action=None: GridBelief(torch.as_tensor(observation["at"])[:, -1].byte())

    class Noting(MPPI):
        def plan(self, *args, previous=None, **kwargs):
            given.append(previous)
            return super().plan(*args, previous=previous, **kwargs)

    agent = PanAgent(world, processor, CRITIC, Noting(16, 4, 1), replan="always")
    for _ in range(3):
        agent.act({"at": torch.zeros(2).numpy()})
    assert given[0] is None and [len(plan) for plan in given[1:]] == [3, 3]


def test_the_same_generator_state_gives_the_same_plan():
    for planner in (ICEM(16, 4, 2), MPPI(16, 4, 2, noise_beta=1)):
        plans = [planner.plan(PointWorld(), origin(), CRITIC, generator=seeded(3)).actions for _ in range(2)]
        assert torch.equal(*plans)


def test_a_sharp_mppi_takes_the_best_sample_and_a_blunt_one_their_mean():
    world = PointWorld()
    blunt, sharp = (
        MPPI(64, 4, 1, sharpness=sharpness).plan(world, origin(), CRITIC, generator=seeded()) for sharpness in (0, 1e4)
    )
    best = RandomShooting(1, 4).plan(world, origin(), CRITIC, generator=seeded())
    assert sharp.expected_return > blunt.expected_return and best is not None
    middle = torch.tensor([0.0, -0.25])
    assert (blunt.actions - middle).abs().max() < 0.25


class Pair(PointWorld):
    """A point that moves only while a button, the other part of its action, is pressed."""

    def __init__(self):
        super().__init__()
        self.config.actions = {"press": DiscreteAction(3), "push": self.config.action}
        self.config.action = None

    def simulate(self, belief, actions, **kwargs):
        self.config.action = self.config.actions["push"]
        moved = actions.parts["push"] * (actions.parts["press"] == 2)[..., None]
        futures = super().simulate(belief, moved.clamp(-1, 0.5) * 1.0, **kwargs)
        self.config.action = None
        return futures


@pytest.mark.parametrize("planner", [ICEM(96, 4, 6), MPPI(256, 4, 10, sharpness=10)])
def test_numbers_and_choices_are_planned_together(planner):
    plan = planner.plan(Pair(), origin(), CRITIC, generator=seeded(), mask={"press": [0, 1, 1]})
    assert isinstance(plan.actions, Actions) and (plan.actions.parts["press"][:2] == 2).all()
    assert plan.actions.parts["push"][0, 0] > 0.3


# --- What a sequence is worth


class Track(PointWorld):
    """One coordinate; the score is 1 beyond 2, and what is 1 is the goal."""

    def __init__(self):
        super().__init__()
        self.config.action = VectorAction(dim=1, low=-1.0, high=1.0)

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        places = belief.cells[:, None] + actions.cumsum(dim=1)
        score = (places[..., 0] / 2).clamp(max=1)
        return SimpleNamespace(
            reward=score, continue_prob=torch.ones_like(score), belief=GridBelief(places[:, -1]), keys=None
        )


def worth(objective, actions, discount=1.0, threshold=1.0):
    """What a sequence of one coordinate is worth."""
    planner = RandomShooting(1, len(actions), objective=objective)
    critic = RewardCritic(threshold=threshold, discount=discount)
    imagined = Imagined(planner, Problem(Track(), GridBelief(torch.zeros(1, 1)), critic))
    # beside a sequence that stays, so that not all reach the goal at once
    sequences = torch.stack([torch.tensor(actions), torch.zeros(len(actions))])[..., None]
    return float(imagined.judge({"action": sequences})[0])


def test_only_costs_along_the_path_rank_sequences_that_reach_the_same_end():
    soon, late, wandering = [1.0, 1, 0, 0], [0.0, 1, 1, 0], [1.0, 1, -1, -1]
    assert worth("end", soon) == worth("end", late) == worth("end", wandering) == 1
    assert worth("path", soon) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert worth("path", late) == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert worth("path", wandering) == worth("path", soon)  # what comes after the goal counts for nothing
    assert worth("both", late) == pytest.approx(1 + worth("path", late))
    assert worth("critic", soon) == pytest.approx(0.5 + 1 + 1 + 1)
    weights = torch.tensor([1, 0.5, 0.25, 0.125])
    assert worth("path", soon, 0.5) == pytest.approx(float((weights * torch.tensor([0.5, 1, 1, 1])).sum() / 1.875))


def test_a_goal_that_every_step_reaches_ends_no_sequence():
    assert worth("path", [0.0, 1, 1, 0], threshold=-1.0) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


@pytest.mark.parametrize("planner", [ICEM(16, 4, 2), MPPI(16, 4, 2)])
def test_no_goal_is_claimed_where_every_step_is_paid(planner):
    world = PointWorld()
    world.simulate = _with(world.simulate, continue_prob=1.0, reward=1.0)
    plan = planner.plan(world, origin(), RewardCritic(), generator=seeded())
    assert len(plan) == 4 and not plan.reaches_goal


def test_a_goal_that_all_refined_samples_reach_is_still_one():
    start, critic = GridBelief(torch.ones(1, 1)), RewardCritic(threshold=0.75, discount=0.9)
    plan = CEM(64, 2, 8, initial_std=0.3).plan(Track(), start, critic, generator=seeded())
    assert plan.reaches_goal and len(plan) == 1


@pytest.mark.parametrize("planner", [RandomShooting(1024, 4, objective="path"), CEM(64, 4, 3, objective="both")])
def test_every_shooting_planner_takes_an_objective(planner):
    world = GridWorld("S.#\n..#\n...")
    target = torch.tensor([2, 2])
    critic = GoalCritic(codes={"camera": [target]})
    plan = planner.plan(world, world.root(), critic, generator=seeded())
    assert plan.reaches_goal and len(plan) == 4


# --- By name, and bad input


def test_planners_of_numbers_are_found_by_name_and_refuse_other_worlds_when_they_are_built():
    made = make_planners(["icem?noise_beta=1", "mppi?sharpness=2&objective=both"], PointWorld().config)
    assert list(made.values()) == [ICEM(noise_beta=1), MPPI(sharpness=2, objective="both")]
    for name, planner in (("icem", ICEM), ("mppi", MPPI)):
        with pytest.raises(ValueError, match=f"{planner.__name__} moves numbers.*got .'discrete'.*Use CEM"):
            make_planners([name], GridWorld().config)
        with pytest.raises(ValueError, match="moves numbers"):
            PanAgent(GridWorld(), processor, CRITIC, planner())
        with pytest.raises(ValueError, match="TextAction"):
            make_planners([name], SimpleNamespace(actions={"say": TextAction(max_length=2)}))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ICEM(noise_beta=-1), "ICEM: `noise_beta` must be at least 0"),
        (lambda: ICEM(shrinking=0.5), "ICEM: `shrinking` must be at least 1"),
        (lambda: ICEM(keep_fraction=1.5), "ICEM: `keep_fraction` must be at least 0 and at most 1"),
        (lambda: ICEM(smoothing=1), "ICEM: `smoothing` of 1 keeps the first distribution"),
        (lambda: ICEM(objective="way"), "ICEM: `objective` must be one of ('critic', 'path', 'end', 'both')"),
        (lambda: MPPI(sharpness=-1), "MPPI: `sharpness` must be at least 0"),
        (lambda: MPPI(noise_std=0), "MPPI: `noise_std` must be above 0"),
        (lambda: MPPI(num_iterations=0), "MPPI: `num_iterations` must be a whole number"),
        (lambda: MPPI(num_rollouts=3), "3 rollouts at temperature 0 are all the same future"),
    ],
)
def test_nonsense_is_refused_when_it_is_built(build, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build()


def test_no_plan_is_made_of_scores_that_are_not_numbers():
    for planner in (ICEM(8, 2, 2), MPPI(8, 2, 2)):
        with pytest.raises(ValueError, match="returned NaN for .* imagined steps"):
            planner.plan(PointWorld(), origin(), not_a_number)
