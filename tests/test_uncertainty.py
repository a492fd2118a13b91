"""How open the next step is (entropy), and how little what came had been expected (surprise), sense by sense."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_worlds import acts, build_board, observe, record_board, world_model

from pan_hf import RandomShooting, RewardCritic, metrics
from pan_hf.agents.cautious import CautiousCritic, uncertainty_of
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.evaluate import evaluate_model
from pan_hf.metrics import MetricAccumulator
from pan_hf.modeling.blocks_pan import entropy_of
from pan_hf.reporting.figures import reliability_pairs
from pan_hf.reporting.report import write_report
from pan_hf.reporting.results import write_records
from pan_hf.reporting.tables import format_value

EVERYTHING = ("camera", "touch", "heard", "mission")


@pytest.fixture(scope="module")
def world():
    model = world_model(EVERYTHING, context_steps=3)
    return model, model.perceive(observe(model)), acts(model, steps=4)


def test_entropy_is_that_of_each_distribution_and_counts_no_row_that_cannot_be():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf]]])
    assert entropy_of(logits).tolist() == pytest.approx([math.log(4)])


@pytest.mark.slow
def test_asking_for_entropy_changes_no_future(world):
    model, belief, actions = world
    plain = model.simulate(belief, actions, seed=3)
    asked = model.simulate(belief, actions, seed=3, uncertainty=True)
    assert plain.entropy == {} and set(asked.entropy) == {"camera", "touch", "heard"}
    assert torch.equal(plain.log_prob, asked.log_prob) and plain.keys() == asked.keys()


def test_entropy_is_the_mean_surprise_of_what_is_drawn(world):
    """The surprise of a draw is the entropy on average. 400 draws of a step: within 4 standard errors."""
    model, belief, actions = world
    futures = model.simulate(belief.select([0]), actions[:1, :1], num_rollouts=400, seed=0, uncertainty=True)
    entropy, surprise = torch.stack(list(futures.entropy.values())).sum(0)[:, 0], -futures.log_prob[:, 0]
    # words, and levels after the first, are conditioned on what was drawn: both sides are means over draws
    assert abs(float((entropy - surprise).mean())) < 4 * float((entropy - surprise).std()) / 20


def test_surprise_of_all_senses_is_minus_the_log_probability(world):
    model, belief, actions = world
    seen = {name: values for name, values in observe(model, steps=4, seed=1).items() if name != "mission"}
    log_prob = model.log_prob(belief, actions, seen)
    assert set(log_prob.surprise) == {"camera", "touch", "heard"}
    total = torch.stack(list(log_prob.surprise.values())).sum(0)
    assert torch.allclose(total, -log_prob.codes, rtol=1e-4)


def test_entropy_goes_with_its_rows_and_into_a_table(world):
    model, belief, actions = world
    futures = model.simulate(belief, actions, seed=3, uncertainty=True)
    assert torch.equal(futures[1].entropy["camera"], futures.entropy["camera"][1:])
    assert futures.to_pandas()["entropy.heard"].to_numpy() == pytest.approx(futures.entropy["heard"].flatten().numpy())


def test_codes_that_are_drawn_one_by_one_have_entropy_too():
    model = world_model(("camera",), level0_sampling="autoregressive")
    futures = model.simulate(model.perceive(observe(model)), acts(model, steps=2), seed=0, uncertainty=True)
    assert (futures.entropy["camera"] > 0).all() and futures.entropy["camera"].shape == (2, 2)


def test_what_is_carried_over_has_no_entropy_to_ask_for(world):
    model, belief, actions = world
    with pytest.raises(ValueError, match="`uncertainty` is measured of every code everywhere"):
        model.simulate(belief, actions, uncertainty=True, effort="coarsest")


# ---- what it is good for


def futures_of(reward, nats, **more):
    """Two futures of three steps."""
    goes_on = torch.ones(2, 3)
    return SimpleNamespace(reward=torch.tensor(reward), continue_prob=goes_on, log_prob=-torch.tensor(nats), **more)


def test_a_cautious_critic_prefers_what_is_sure_and_keeps_the_goal():
    plain = RewardCritic(threshold=1.0, discount=0.9)
    cautious = CautiousCritic(critic=plain, penalty=0.1)
    futures = futures_of([[0.0, 0.0, 1.0], [0.0, 0.0, 0.95]], [[3.0, 3.0, 3.0], [0.1, 0.1, 0.1]])
    assert (cautious.threshold, cautious.discount) == (1.0, 0.9)
    values = [critic.value(futures, critic.score(futures)) for critic in (plain, cautious)]
    assert values[0][0] > values[0][1] and values[1][0] < values[1][1]
    expected = sum(0.9**step * (reward - 0.1 * 3.0) for step, reward in enumerate([0.0, 0.0, 1.0]))
    assert float(values[1][0]) == pytest.approx(expected, abs=1e-6)
    assert cautious.reached(futures, cautious.score(futures)).tolist() == [[False, False, True], [False] * 3]


def test_caution_takes_the_entropy_where_it_is_measured_and_says_where_nothing_is():
    futures = futures_of([[0.0] * 3] * 2, [[9.0] * 3] * 2, entropy={"a": torch.ones(2, 3), "b": torch.ones(2, 3)})
    assert uncertainty_of(futures).tolist() == [[2.0] * 3] * 2
    with pytest.raises(ValueError, match="which this world does not tell"):
        uncertainty_of(SimpleNamespace())
    with pytest.raises(ValueError, match="`penalty` must be"):
        CautiousCritic(critic=RewardCritic(), penalty=-1)


@pytest.mark.slow
def test_a_planner_plans_with_caution(world):
    model, belief, _ = world
    settings = {"num_samples": 32, "horizon": 3, "temperature": 1.0}
    costly = CautiousCritic(critic=RewardCritic(), penalty=100.0)
    plans = [
        RandomShooting(**settings).plan(model, belief.select([0]), critic, generator=torch.Generator().manual_seed(0))
        for critic in (RewardCritic(), costly)
    ]
    assert plans[1].expected_return < plans[0].expected_return


def test_auroc_is_the_share_of_pairs_in_their_order():
    numbers, is_case = torch.rand(300, dtype=torch.double) * 50, torch.rand(300) < 0.3
    numbers = numbers + 10 * is_case
    formula, components = metrics.auroc(numbers, is_case)
    exact = (numbers[is_case, None] > numbers[~is_case]).double().mean()
    assert metrics.FORMULAS[formula](components.sum(0).numpy()) == pytest.approx(float(exact), abs=0.02)  # of the bins
    _, alike = metrics.auroc(torch.ones(4), torch.tensor([True, False, True, False]))
    assert metrics.FORMULAS[formula](alike.sum(0).numpy()) == 0.5
    _, alone = metrics.auroc(torch.ones(4), torch.ones(4, dtype=torch.bool))
    assert math.isnan(metrics.FORMULAS[formula](alone.sum(0).numpy()))


def test_reliability_is_the_share_that_came_of_what_was_given_such_a_probability():
    said, came = torch.tensor([0.05, 0.62, 0.68, 0.62, 1.0]), torch.tensor([False, True, True, False, True])
    tally = MetricAccumulator()
    tally.update(metrics.reliability(said, came)["pan"], np.arange(5))
    assert tally.result("reliability:60-70%")[0] == pytest.approx(2 / 3)
    assert tally.result("reliability:90-100%")[0] == 1 and tally.result("reliability:0-10%")[0] == 0
    assert tally.result("reliability:30-40%") is None  # nothing was given such a probability
    # by bin: 1 x |0.05 - 0|, 3 x |0.64 - 2/3|, 1 x |1 - 1|
    assert tally.result("calibration_error")[0] == pytest.approx((0.05 + 3 * abs(0.64 - 2 / 3)) / 5, abs=1e-6)
    other = MetricAccumulator()
    other.update(metrics.reliability(said, came)["predicted"], np.arange(5))
    assert other.result("reliability:60-70%")[0] == pytest.approx(0.64) and "calibration_error" not in other.metrics()


def test_probabilities_by_which_a_thing_comes_are_reliable():
    """Ten thousand draws, each as likely as said: no bin is off by more than 4 standard errors of half a percent."""
    generator = torch.Generator().manual_seed(0)
    said = torch.rand(10_000, generator=generator)
    came = torch.rand(10_000, generator=generator) < said
    tally = MetricAccumulator()
    tally.update(metrics.reliability(said, came)["pan"], np.arange(10_000))
    assert tally.result("calibration_error")[0] < 0.02
    tally = MetricAccumulator()
    tally.update(metrics.reliability(said, torch.zeros(10_000, dtype=torch.bool))["pan"], np.arange(10_000))
    assert tally.result("calibration_error")[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_an_evaluation_says_whether_entropy_tells_errors(tmp_path):
    trajectories = load_trajectories(record_board(tmp_path / "data", episodes=8), "train")
    model, processor = build_board(trajectories)
    records = evaluate_model(model.eval(), processor, trajectories, horizons=[1, 2], num_windows=16, progress=False)
    told = {(entry.metric, entry.horizon): entry.value for entry in records if entry.model == "pan"}
    assert 0 < told["entropy", 1] < told["entropy", 2]
    assert 0 < told["exact_state", 1] < 1  # or there are no pairs
    assert 0 <= told["entropy_auroc", 1] <= 1
    # 16 windows at each horizon, one step from a true state each
    assert 0 <= told["calibration_error", None] <= 1
    pairs = reliability_pairs(records)
    assert pairs and all(said.horizon is None and 0 < said.value <= 1 for said, _ in pairs)
    write_records(tmp_path / "evaluation.json", records)
    page = write_report(tmp_path).read_text()
    assert "Whether it knows when it is right" in page and "probability given to the predicted state" in page
    assert f"{format_value(next(e for e in records if e.metric == 'calibration_error'))} apart on average" in page
