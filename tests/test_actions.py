"""Actions are named parts of a step, like senses: a motion and a sentence, or two actors."""

import copy

import numpy as np
import pytest
import torch
from tiny_worlds import ACTIONS, BACKBONES, PAD, SENSES, language_model, observe, outcomes, world_model
from transformers import AutoConfig, AutoModelForCausalLM

from pan_hf import (
    CEM,
    Belief,
    DiscreteAction,
    GraphSearch,
    PanConfig,
    PanModel,
    PanProcessor,
    PanTokenizer,
    RandomShooting,
    TextAction,
    VectorAction,
)
from pan_hf.build import make_processor
from pan_hf.modeling.objectives_pan import _teacher_forced
from pan_hf.modeling.state_pan import as_action
from pan_hf.modeling.step_pan import StepPredictor

SEVERAL = {
    "motion": VectorAction(dim=2, low=[-1, 0], high=[1, 4], base=4, num_levels=2),
    "say": TextAction(max_length=3),
    "press": DiscreteAction(4),
}


def several(**config):
    """A world in which a step is a motion, a press and something said."""
    return world_model(("camera", "touch", "mission"), SEVERAL, **config)


def done(batch=2, steps=1, seed=0):
    """Random actions of every part, `(batch, steps, ...)`."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 60, (batch, steps, 3), generator=generator)
    return {
        "motion": torch.rand(batch, steps, 2, generator=generator),
        "press": torch.randint(4, (batch, steps), generator=generator),
        "say": words.masked_fill(torch.arange(3) >= 2, PAD),
    }


def test_one_part_is_what_an_action_was():
    given = {"senses": {"camera": SENSES["camera"]}}
    short = PanConfig(action=ACTIONS["discrete"], **given)
    named = PanConfig(actions={"action": ACTIONS["discrete"]}, **given)
    assert short.to_dict() == named.to_dict() and short.to_dict()["actions"] is None
    assert short.actions == {"action": short.action} and "action.0" in short.segments


def test_parts_have_segments_of_their_own_and_come_back():
    config = several().config
    assert list(config.actions) == ["motion", "press", "say"] and config.action is None
    assert {"action.motion.0", "action.motion.1", "action.press.0"} <= set(config.segments)
    again = PanConfig.from_dict(config.to_dict())
    assert again.actions == config.actions and again.to_dict() == config.to_dict()


def test_a_part_called_action_keeps_its_rows_beside_others():
    model = world_model(("camera",), {"action": ACTIONS["vector"], "say": TextAction(max_length=3)})
    assert {"action.0", "action.1"} <= set(model.config.segments)
    assert "action_embedding.place" in dict(model.named_parameters())


def test_the_tokens_of_a_step_are_those_of_its_parts_in_order():
    model, action = several(), as_action(done(2, 1))[:, 0]
    assert model.layout.action_length == 2 + 1 + 3
    whole = model.embed_action(action)
    assert whole.shape == (2, 6, 32)
    assert torch.equal(whole[:, 2], model.table.code_rows("action.press", 0, action.parts["press"]))
    assert torch.equal(whole[:, 3:], model.get_input_embeddings()(action.parts["say"]))


@pytest.mark.parametrize("changed", SEVERAL)
def test_every_part_moves_the_future(changed):
    model = several()
    belief, actions = model.perceive(observe(model, 1)), done(1, 2)
    other = actions | {changed: done(1, 2, seed=5)[changed]}
    one, two = (model.simulate(belief, given, temperature=0.0).log_prob for given in (actions, other))
    assert not torch.allclose(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("effort", [None, "focused", "coarsest"])
def test_several_parts_are_remembered_branched_and_joined(effort):
    model = several(context_steps=3, fold_levels=False)
    old = model.perceive(observe(model, 1, 3), done(1, 2))
    new = model.perceive(observe(model, 1, 1, seed=4))
    belief, actions = Belief.cat([old, new]), done(2, 4, seed=7)
    together = model.simulate(belief, actions, temperature=0.0, effort=effort)
    for index, alone in enumerate((old, new)):
        row = {name: part[index : index + 1] for name, part in actions.items()}
        found = model.simulate(alone, row, temperature=0.0, effort=effort, num_rollouts=2)
        assert found.keys()[0] == found.keys()[1] == together.keys()[index]
        torch.testing.assert_close(found.log_prob[0], together.log_prob[index], atol=1e-5, rtol=1e-5)
    spoken = model.perceive(observe(model, 1, 3), done(1, 2) | {"say": done(1, 2, seed=9)["say"]})
    assert spoken.keys() != old.keys() and spoken.keys(steps=0) == old.keys(steps=0)


@pytest.mark.slow
def test_a_window_of_several_parts_equals_step_by_step():
    model = several(context_steps=2)
    observation, action = observe(model, 2, 3), as_action(done(2, 2))
    state = model.encode(observation)
    with torch.no_grad():
        window = _teacher_forced(model, state, action, observation["mission"])
        belief = model.perceive({name: o if name == "mission" else o[:, :1] for name, o in observation.items()})
        for index in range(2):
            target = state.map(lambda tensor, i=index: tensor[:, i + 1])
            step = StepPredictor(model).step(belief, action[:, index], target)
            belief = step.belief
            in_one = window.hidden["places"].unflatten(0, (2, 2))[:, index]
            torch.testing.assert_close(in_one, step.hidden["places"], atol=2e-5, rtol=2e-5)
    later = {name: values[:, 1:] for name, values in observation.items() if name != "mission"}
    first = {name: o if name == "mission" else o[:, :1] for name, o in observation.items()}
    assert torch.isfinite(model.log_prob(model.perceive(first), done(2, 2), later).total).all()
    assert model.teacher_forced(observation, done(2, 2)).log_prob.shape == (2, 2)


@pytest.mark.slow
def test_a_world_of_several_parts_is_trained_saved_and_simulated(tmp_path):
    model = several(context_steps=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    observation, action, told = observe(model, 4, 3), done(4, 2), outcomes(4, 2)
    losses = []
    for _ in range(8):
        output = model(observation=observation, action=action, **told)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.losses["inverse_dynamics"]))
    assert losses[-1] < losses[0]  # which takes all parts of the action
    for name in ("action_embeddings.motion.place", "action_embeddings.motion.fold.0.weight"):
        assert dict(model.named_parameters())[name].grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = PanModel.from_pretrained(tmp_path)
    actions = done(4, 2, seed=3)
    futures = [m.simulate(m.perceive(observation, action), actions, seed=0) for m in (model, again)]
    assert futures[0].keys() == futures[1].keys() and torch.equal(futures[0].reward, futures[1].reward)


@pytest.mark.slow
def test_every_actor_has_a_reward_of_its_own():
    model = several(actors=["guard", "thief"]).train()
    observation, action = observe(model, 2, 2), done(2, 1)
    rewards = {"thief": torch.tensor([[1.0], [0.0]]), "guard": torch.tensor([[0.0], [5.0]])}
    optimizer = torch.optim.AdamW(model.outcome.parameters(), lr=5e-2)
    for _ in range(15):
        loss = model(observation=observation, action=action, reward=rewards).losses["reward"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    first = {name: o if name == "mission" else o[:, :1] for name, o in observation.items()}
    futures = model.simulate(model.perceive(first), action)
    assert futures.reward.shape == (2, 1, 2) and futures.continue_prob.shape == (2, 1)
    side_by_side = torch.stack([rewards["guard"], rewards["thief"]], -1)
    given = {"observation": observation, "action": action}
    by_name, by_order = (model(**given, reward=told).losses["reward"] for told in (rewards, side_by_side))
    assert torch.equal(by_name, by_order) and by_name < 1.0
    with pytest.raises(ValueError, match="by actor"):
        model(observation=observation, action=action, reward=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"by actor for \['guard', 'thief'\], got \['guard'\]"):
        model(observation=observation, action=action, reward={"guard": torch.zeros(2, 1)})


@pytest.mark.parametrize(
    "change, told",
    [
        ({"motion": None}, r"must have the parts \['motion', 'press', 'say'\] by name, got \['press', 'say'\]"),
        ({"motion": torch.full((2, 1, 2), 9.0)}, "which unit"),
        ({"press": torch.full((2, 1), 4)}, "0 to 3"),
        ({"press": torch.zeros(3, 1, dtype=torch.long)}, r"`actions\['press'\]` must be \(B, H\) with B = 2"),
        ({"press": torch.zeros(2, 2, dtype=torch.long)}, "as many as any other part"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, told):
    model = several()
    belief = model.perceive(observe(model, 2))
    actions = {name: part for name, part in (done(2, 1) | change).items() if part is not None}
    with pytest.raises(ValueError, match=told):
        model.simulate(belief, actions)


def test_a_tensor_is_refused_where_there_are_several_parts():
    model = several()
    with pytest.raises(ValueError, match=r"must have the parts .* got \['action'\]"):
        model.simulate(model.perceive(observe(model, 2)), torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.parametrize("name", ["keys", "two words"])
def test_names_that_a_part_cannot_have_are_refused(name):
    with pytest.raises(ValueError, match="[Aa]ction"):
        PanModel.from_backbone(language_model(), {"camera": SENSES["camera"]}, {name: DiscreteAction(2)})


@pytest.mark.parametrize(
    "planner, refusal",
    [
        (GraphSearch(), r"GraphSearch tries every action.* got \['vector', 'discrete', 'text'\]"),
        (RandomShooting(), "TextAction cannot be drawn at random.*make it a choice: a wrapper with spaces.Discrete"),
        (CEM(), "TextAction has no bounds.*make it a choice"),
    ],
)
def test_a_planner_says_which_part_it_cannot_propose(planner, refusal):
    model = several()
    with pytest.raises(ValueError, match=refusal):
        planner.plan(model, model.perceive(observe(model, 1)), lambda futures: futures.reward)


# what the processor makes of them


@pytest.fixture(scope="module")
def pair():
    """A model of several parts and its processor."""
    tokenizer = PanTokenizer.train(["go to the red door", "open"], vocab_size=300)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    shape = BACKBONES["qwen3"] | {"vocab_size": 300, "initializer_range": 0.1}
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape, **special))
    senses = {name: SENSES[name] for name in ("camera", "touch", "mission")}
    model = PanModel.from_backbone(backbone, senses, SEVERAL, text_reserve=10, adapter_dim=16).eval()
    return model, make_processor(model, tokenizer)


def test_the_processor_reads_and_writes_every_part(pair):
    model, processor = pair
    camera, touch = np.zeros((3, 16, 16, 3), np.uint8), [[0.0, 0.5, 1.0]] * 3
    given = {"motion": [[0.5, 1.0], [-1.0, 4.0]], "press": [3, 0], "say": ["open", "go"]}
    batch = processor(observation={"camera": camera, "touch": touch, "mission": "go"}, action=given)
    assert {name: tuple(part.shape) for name, part in batch["action"].items()} == {
        "motion": (1, 2, 2),
        "press": (1, 2),
        "say": (1, 2, 3),
    }
    read = processor.decode_action(batch["action"])
    assert read["say"] == [["open", "go"]] and read["press"].tolist() == [[3, 0]]
    belief = model.perceive(**batch)
    assert model.simulate(belief, processor(action=given)["action"]).log_prob.shape == (1, 2)


def test_a_processor_of_several_parts_comes_back_and_knows_its_model(pair, tmp_path):
    model, processor = pair
    processor.save_pretrained(tmp_path)
    again = PanProcessor.from_pretrained(tmp_path)
    assert again.actions == processor.actions and again.action is None
    again.check_model(model)
    again.actions["press"]["num_actions"] = 5
    with pytest.raises(ValueError, match="action.press.num_actions: 5 in the processor, 4 in the model"):
        again.check_model(model)


@pytest.mark.parametrize(
    "action, told",
    [
        ([1, 2], "must be a dict with the parts motion, press, say, got list"),
        ({"press": [1, 2]}, r"got \['press'\]"),
        ({"motion": [[0.0, 1.0]], "press": [9], "say": ["go"]}, "action.press: expected integers in 0..3, got 9"),
        ({"motion": [[0.0, 1.0]], "press": [[1], [1]], "say": ["go"]}, "Batch sizes differ"),
    ],
)
def test_parts_that_the_processor_cannot_read_are_refused(pair, action, told):
    with pytest.raises(ValueError, match=told):
        pair[1](observation={"camera": np.zeros((2, 16, 16, 3), np.uint8)}, action=action, partial=True)


def test_a_part_of_the_action_grows_by_name(pair):
    model, processor = copy.deepcopy(pair)
    processor.attach(model)
    model.grow("action.press.0", names=["jump"])
    assert model.config.actions["press"].num_actions == 5 == processor.actions["press"]["num_actions"]
    processor.check_model(model)
    actions = done(1, 1) | {"press": torch.tensor([[4]])}
    assert torch.isfinite(model.simulate(model.perceive(observe(model, 1)), actions).log_prob).all()
