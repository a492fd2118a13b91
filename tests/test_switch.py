"""The learned switch: decided row by row, saved with the model, and taught to spend what the price is worth."""

import pytest
import torch
from tiny_worlds import acts, observe, outcomes, world_model

import pan_hf.modeling.imagination_pan as switching
from pan_hf import Effort, PanModel, State
from pan_hf.modeling.effort_pan import SwitchHead, SwitchPlan
from pan_hf.modeling.state_pan import ABSENT

EVERYTHING = ("camera", "touch", "heard", "mission")
LAYOUTS = [
    pytest.param({"context_steps": 1}, id="markov"),
    pytest.param({"context_steps": 1, "fold_levels": False}, id="a-pass-a-level"),
    pytest.param({"context_steps": 3, "fold_levels": False}, id="a-pass-a-level-with-a-past"),
]


def deciding(monkeypatch, model, choices):
    """The switch of a model, made to predict `choices[row]`, names of blocks, in every row."""
    names = [block.name for block in model.blocks]

    def forward(head, given):
        rows = given.task.tolist()  # tests smuggle the row in as the task
        logits = torch.full((len(rows), len(names) + 1), -9.0)
        for index, row in enumerate(rows):
            left = [names.index(name) for name in choices[row] if names.index(name) > _last(given.chosen[index])]
            logits[index, min(left, default=len(names))] = 9.0
        return logits

    original = SwitchPlan.inputs

    def inputs(plan, rows, draft):
        given = original(plan, rows, draft)
        given.task = torch.arange(draft.num_rows) if rows is None else rows
        return given

    monkeypatch.setattr(SwitchPlan, "inputs", inputs)
    monkeypatch.setattr(SwitchHead, "forward", forward)


def _last(chosen):
    return max(chosen.nonzero().flatten().tolist(), default=-1)


CHOICES = [
    (),
    ("touch.0", "camera.0"),
    ("touch.0", "touch.1", "camera.0", "camera.1", "heard"),
    ("touch.0", "touch.1", "touch.2", "touch.latents"),
    ("camera.0", "camera.1", "camera.latents"),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", LAYOUTS)
def test_rows_of_a_batch_stop_where_each_wants_and_are_what_they_would_be_alone(config, monkeypatch):
    model = world_model(EVERYTHING, **config)
    rows = len(CHOICES)
    belief, actions = model.perceive(observe(model, rows)), acts(model, rows, 2)
    alone = []
    for index, blocks in enumerate(CHOICES):
        one = belief.select(torch.tensor([index]))
        alone.append(model.simulate(one, actions[index : index + 1], temperature=0.0, effort=Effort(blocks)))
    deciding(monkeypatch, model, CHOICES)
    together = model.simulate(belief, actions, temperature=0.0, effort="auto")
    names = [block.name for block in model.blocks]
    for index, (blocks, single) in enumerate(zip(CHOICES, alone, strict=True)):
        chosen = {names[k] for k in together.switch[index, 0].nonzero().flatten().tolist()}
        assert chosen == set(blocks)
        steps = 1 if any("latents" in name for name in blocks) else 2  # drawn latents are in what the next step sees
        for one, all_rows in zip(single.state.tensors(), together.state.tensors(), strict=True):
            assert torch.equal(one[0, :steps], all_rows[index, :steps])
        torch.testing.assert_close(single.reward[0, :steps], together.reward[index, :steps], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single.cost.compute[0], together.cost.compute[index])
        torch.testing.assert_close(single.cost.tokens[0], together.cost.tokens[index])
    assert (together.cost.denoiser_calls > 0).any(1).tolist() == [False, False, False, True, True]


@pytest.mark.slow
def test_latents_are_drawn_for_the_rows_that_want_them(monkeypatch):
    model = world_model(EVERYTHING)
    deciding(monkeypatch, model, CHOICES)
    belief = model.perceive(observe(model, len(CHOICES)))
    state = model.simulate(belief, acts(model, len(CHOICES), 1), effort="auto").state
    assert state.latents["camera"].isfinite().all((1, 2, 3)).tolist() == [False] * 4 + [True]
    assert state.latents["touch"].isfinite().all((1, 2, 3)).tolist() == [False] * 3 + [True, False]


def test_rows_that_have_stopped_are_not_run_again(monkeypatch):
    model = world_model(("camera", "mission"), fold_levels=False)
    choices = [("camera.0",)] * 5 + [("camera.0", "camera.1")] * 2
    deciding(monkeypatch, model, choices)
    assert model.compute_model.whole > 0  # counted once, while a step runs
    ran, original = [], model.run_backbone
    monkeypatch.setattr(model, "run_backbone", lambda x, *rest: ran.append(len(x)) or original(x, *rest))
    belief = model.perceive(observe(model, 7))
    assert belief.cache is not None and ran == [7]  # the mission is run when it is first asked for
    ran.clear()
    model.simulate(belief, acts(model, 7, 1), effort="auto")
    assert ran == [7, 2]


@pytest.mark.slow
def test_the_switch_is_saved_with_the_model(tmp_path):
    model = world_model(EVERYTHING)
    belief, actions = model.perceive(observe(model, 4)), acts(model, 4, 3)
    before = model.simulate(belief, actions, seed=0, effort="auto")
    model.save_pretrained(tmp_path)
    loaded = PanModel.from_pretrained(tmp_path)
    after = loaded.simulate(loaded.perceive(observe(model, 4)), actions, seed=0, effort="auto")
    assert torch.equal(before.switch, after.switch) and before.switch.any() and not before.switch.all()


@pytest.mark.slow
def test_the_switch_is_told_task_and_price():
    model = world_model(EVERYTHING)
    belief, actions = model.perceive(observe(model, 8)), acts(model, 8, 2)
    efforts = [Effort(), Effort(task="planning"), Effort(price=3.0), Effort(price=0.003)]
    plans = [switching.imagine(model, belief, actions, effort, None)[1] for effort in efforts]
    logits = [model.switch(plan.decisions[0][0][0]) for plan in plans]
    assert not any(torch.equal(logits[0], other) for other in logits[1:])
    for found in logits:
        assert found[:, -1].isfinite().all() and found[:, 1].isinf().all()  # touch.1 is no beginning


def windows(model, batch=16, steps=2):
    return {
        "observation": observe(model, batch, steps + 1),
        "action": acts(model, batch, steps),
        **outcomes(batch, steps),
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pixels", "moving", "outcome", "planning"])
def test_a_perfect_future_has_no_distortion_and_standing_still_has_about_one(task):
    model = world_model(("camera", "touch", "mission"))
    given = windows(model, steps=2)
    beginning, actions, later = switching.split_window(model, **given)
    futures = model.simulate(beginning, actions, effort=())
    seen = later.observation
    futures.decode = lambda name: seen[name]
    futures.state, futures.reward, futures.continue_prob = later.state, later.reward, 1 - later.done
    assert (switching.distortion(model, futures, later, task) == 0).all()
    futures.decode = lambda name: later.before[name]
    futures.state = model.encode(later.before)
    still = switching.distortion(model, futures, later, task)
    assert still.shape == (16, 2)
    if task in ("pixels", "moving"):
        torch.testing.assert_close(still.mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
    if task == "planning":  # where every one of the random levels changes
        pairs = zip(futures.state.tensors(), later.state.tensors(), strict=True)
        changed = torch.stack([(before != after).any(-1) for before, after in pairs]).all(0)
        assert changed.float().mean() > 0.8 and (still[changed] == 1).all()


def test_a_plan_needs_the_finer_levels_too():
    model = world_model(("camera", "mission"))
    beginning, actions, later = switching.split_window(model, **windows(model, steps=2))
    futures = model.simulate(beginning, actions, effort=())
    futures.reward, futures.continue_prob = later.reward, 1 - later.done
    coarse, fine = later.state.codes["camera"]
    fine = fine.clone()
    fine[0, :, 3] = ABSENT
    futures.state = State({"camera": [coarse, fine]})
    lost = switching.distortion(model, futures, later, "planning")
    assert (lost[0] == 0.5).all() and (lost[1:] == 0).all()


@pytest.mark.slow
def test_candidates_are_all_prefixes_of_all_senses_that_hold_together(monkeypatch):
    model = world_model(("camera", "touch"))
    assert len(switching.candidates(model)) == len(model.blocks) + 1  # too many: prefixes of all blocks in their order
    monkeypatch.setattr(switching, "MOST_CANDIDATES", 20)
    found = switching.candidates(model)
    assert len(found) == len(set(found)) == 4 * 5 and () in found
    belief = model.perceive(observe(model, 1))
    for blocks in found:
        model.simulate(belief, acts(model, 1, 1), effort=blocks)  # refuses a block without what it stands on


def improving_with_every_block(monkeypatch, price):
    """Standing still is as bad as can be, each block makes it better, and this is the price."""
    monkeypatch.setattr(switching, "_drawn_effort", lambda: Effort(price=price, task="pixels"))
    monkeypatch.setattr(switching, "LEAST_PRICE", price)
    monkeypatch.setattr(switching, "MOST_PRICE", price * 1.001)
    monkeypatch.setattr(
        switching, "distortion", lambda model, futures, later, task: 1 - futures.switch.float().mean(2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["switch_warm_up", "switch"])
@pytest.mark.parametrize("price", [0.003, 50.0])
def test_a_high_price_teaches_to_stop_and_a_low_one_does_not(objective, price, monkeypatch):
    torch.manual_seed(0)
    model, given = world_model(("camera", "mission")), windows(world_model(("camera", "mission")))
    improving_with_every_block(monkeypatch, price)
    beginning, actions, later = switching.split_window(model, **given)
    if objective == "switch_warm_up":
        given = {"condition": switching.switch_examples(model, beginning, actions, later)}
    optimizer = torch.optim.Adam(model.switch.parameters(), 1e-2)
    for _ in range(30):
        output = model(objective=objective, **given)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    used = model.simulate(beginning, actions, effort=Effort(price=price)).switch.float().mean()
    assert used > 0.9 if price < 1 else used < 0.1
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("switch."))


@pytest.mark.slow
def test_examples_hold_each_candidate_s_choices_and_what_they_lead_to():
    model = world_model(("camera", "mission"))
    beginning, actions, later = switching.split_window(model, **windows(model, batch=4))
    examples = switching.switch_examples(model, beginning, actions, later)
    tried, end = switching.candidates(model), len(model.blocks)
    names = [block.name for block in model.blocks]
    for index, blocks in enumerate(tried):
        choices = [*(names.index(name) for name in blocks), end]
        expected = torch.tensor(choices + [-1] * (end + 1 - len(choices)))
        assert torch.equal(examples["choice"][:, index], expected.expand(4, -1))
        futures = model.simulate(beginning, actions, temperature=0.0, effort=Effort(blocks))
        if "camera.latents" not in blocks:  # which are drawn anew, and the next steps see them
            torch.testing.assert_close(examples["compute"][:, index], futures.cost.compute.mean(1))
            lost = switching.distortion(model, futures, later, "pixels").mean(1)
            torch.testing.assert_close(examples["distortion"][:, index, 0], lost, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_rollouts_are_compared_with_others_of_the_same_beginning_only(monkeypatch):
    model = world_model(("camera", "mission"))
    given, seen = windows(model, batch=3), []
    shift = torch.tensor([0.0, 100.0, -7.0]).repeat_interleave(switching.GROUP).unsqueeze(1)
    monkeypatch.setattr(switching, "_drawn_effort", lambda: Effort(price=0.0))
    for added in (0.0, 1.0):
        lost = torch.rand(3 * switching.GROUP, 2, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(switching, "distortion", lambda *_, lost=lost, added=added: lost + added * shift)
        torch.manual_seed(1)
        model.zero_grad()
        model(objective="switch", **given).loss.backward()
        seen.append(model.switch.out.weight.grad.clone())
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-3)
