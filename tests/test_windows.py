"""What training gathers and draws: windows of a recording, how often each, their codes kept, and texts."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_worlds import board_world

from pan_hf import PanModel, PanProcessor
from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import WindowReader, read_rows
from pan_hf.features import feature_of
from pan_hf.tokenization import PanTokenizer
from pan_hf.tokenization.vocabulary_pan import Vocabulary
from pan_hf.training import code_cache as encoded
from pan_hf.training import pretrain_backbone, reinforce
from pan_hf.training.code_cache import encode_all, encode_once
from pan_hf.training.sampling import WeightedRows, outcome_entropy, outcome_entropy_by_kind, window_weights
from pan_hf.training.windows import Windows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return board_world(tmp_path_factory.mktemp("world"))


class LargeCodec(torch.nn.Module):
    def encode(self, values):
        return [values.long()], None


def test_a_code_beyond_16_bits_is_kept():
    codes = torch.tensor([[0, 32_767, 32_768, 70_000]])
    config = SimpleNamespace(coded_senses={"s": SimpleNamespace(num_levels=1)}, prefix_senses={}, text_senses={})
    model = torch.nn.Module()
    model.senses, model.config, model.device = {"s": LargeCodec()}, config, torch.device("cpu")
    assert torch.equal(encode_all(model, {"s": codes}, latents=False)["codes"]["s"][0].long(), codes)


def test_a_sampler_draws_the_same_again_and_in_proportion():
    weights = torch.tensor([1.0, 0.0, 3.0])
    draws = [index for index, _ in zip(WeightedRows(weights, 5), range(5000), strict=False)]
    again = [index for index, _ in zip(iter(WeightedRows(weights, 5)), range(5000), strict=False)]
    assert draws == again and draws[:50] != draws[4096:4146]
    assert draws.count(1) == 0 and abs(draws.count(2) / 5000 - 0.75) < 0.02  # three standard deviations
    other = [index for index, _ in zip(WeightedRows(weights, 6), range(50), strict=False)]
    assert other != draws[:50]


def test_windows_stay_inside_an_episode_and_carry_what_each_action_led_to(world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    tensors, actions = read_rows(world.trajectories, processor)
    windows = Windows(world.trajectories, tensors, actions, 2, False, {"mission"})
    batch = windows.__getitems__(list(range(len(windows))))
    assert batch["action"].shape == batch["reward"].shape == batch["done"].shape == (len(windows), 2)
    assert batch["observation"]["camera"].shape == (len(windows), 3, 3, 16, 16)
    assert batch["observation"]["mission"].dim() == 2
    place = batch["observation"]["place"]
    moves = torch.tensor([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])[batch["action"]]
    assert torch.equal((place[:, :-1] + moves).clamp(0, 3), place[:, 1:])
    assert torch.equal(batch["done"].bool(), (place[:, 1:] == 3).all(-1))
    encoded = encode_all(model, tensors, latents=True)
    windows = Windows(world.trajectories, encoded, actions, 2, True, {"mission"})
    weights = window_weights(windows, torch.ones(len(windows)))
    assert weights.shape == (len(windows),) and (weights > 0).all()


def test_transitions_are_drawn_more_often_where_it_is_open_whether_anything_changes(world):
    actions, turn = torch.from_numpy(world.trajectories.actions), torch.arange(len(world.trajectories.actions))
    moves = (actions == 1) | ((actions == 2) & (turn % 2 == 0))  # never after 0, always after 1, at times after 2
    codes = torch.cat([torch.zeros(1, dtype=torch.long), moves[:-1].long().cumsum(0)]).unsqueeze(1)
    tensors = {"codes": {"camera": [codes]}, "text": {}, "prefix": None}
    windows = Windows(world.trajectories, tensors, actions, 2, True, {"mission"})
    by_kind = outcome_entropy_by_kind(windows, world.trajectories)
    (environment,) = set(world.trajectories.environments)
    assert by_kind[environment, 2] > 1.5 * by_kind[environment, 0] and by_kind[environment, 0] < 1
    found = outcome_entropy(windows, world.trajectories, by_kind)  # by the first action of a window
    torch.testing.assert_close(found, torch.tensor([by_kind[environment, a] for a in actions[windows.rows].tolist()]))
    assert float(found.mean()) == pytest.approx(1)
    assert outcome_entropy(windows, world.trajectories, {}).eq(1).all()  # of kinds that a part has not met


def test_environments_are_drawn_as_they_were_recorded_however_open_they_are(world):
    trajectories = copy.copy(world.trajectories)
    number = len(trajectories.environments)
    trajectories.environments = ["still"] * (number // 2) + ["restless"] * (number - number // 2)
    actions, episode = torch.from_numpy(trajectories.actions), torch.from_numpy(np.asarray(trajectories.episode))
    moves = (episode >= number // 2) & (torch.arange(len(actions)) % 2 == 0)
    codes = torch.cat([torch.zeros(1, dtype=torch.long), moves[:-1].long().cumsum(0)]).unsqueeze(1)
    tensors = {"codes": {"camera": [codes]}, "text": {}, "prefix": None}
    windows = Windows(trajectories, tensors, actions, 1, True, {"mission"})
    found = outcome_entropy(windows, trajectories, outcome_entropy_by_kind(windows, trajectories))
    is_restless = episode[windows.rows] >= number // 2
    assert float(found[is_restless].mean()) == pytest.approx(1) == float(found[~is_restless].mean())


def test_rare_rewards_are_a_tenth_of_the_draws_at_most_however_open_they_are(world):
    actions = torch.from_numpy(world.trajectories.actions)
    tensors = {"codes": {"camera": [torch.zeros(len(actions), 1, dtype=torch.long)]}, "text": {}, "prefix": None}
    windows = Windows(world.trajectories, tensors, actions, 1, True, {"mission"})
    windows.rewards, windows.dones = torch.zeros(len(actions)), torch.zeros(len(actions))
    rewarded = windows.rows[::50]
    windows.rewards[rewarded] = 1.0
    rare = torch.isin(windows.rows, rewarded)
    weights = window_weights(windows, torch.where(rare, 2.0, 0.5))
    assert float(weights[rare].sum() / weights.sum()) == pytest.approx(0.1, abs=0.01)


def test_texts_become_blocks_of_words_with_an_end_after_each(world):
    tokenizer = PanProcessor.from_pretrained(world.model).tokenizer
    blocks = pretrain_backbone.TextBlocks(["go up", "", "stay here"], tokenizer, block=4)
    ids = [*tokenizer.text_ids(["go up"])[0], tokenizer.eos_token_id]
    ids += [*tokenizer.text_ids(["stay here"])[0], tokenizer.eos_token_id]
    batch = blocks.__getitems__(list(range(len(blocks))))
    assert batch["input_ids"].flatten()[: len(ids)].tolist() == ids
    assert batch["labels"].flatten()[: len(ids)].tolist() == ids
    assert (batch["labels"].flatten()[len(ids) :] == -100).all()
    with pytest.raises(ValueError, match="no text to train the backbone on"):
        pretrain_backbone.TextBlocks([" "], tokenizer)


def test_texts_come_from_the_recording_or_from_a_file(world, tmp_path):
    assert pretrain_backbone.recorded_texts(world.trajectories) == ["go to the corner"]
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    assert pretrain_backbone.read_texts(str(tmp_path / "notes.txt")) == ["one", "two"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"n": 1, "text": "three"}\n{"n": 2, "text": "four"}\n')
    assert pretrain_backbone.read_texts(str(tmp_path / "set")) == ["three", "four"]


def test_rollouts_are_as_long_as_episodes_allow(world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    longest = int(world.trajectories.episode_lengths.max()) - 1
    for horizon, steps in ((2, 3), (10 * longest, longest)):  # one step more is looked at: two steps of context
        args = SimpleNamespace(horizon=horizon)
        windows, weights = reinforce.make_rollouts(model, processor, world.trajectories, args)
        assert windows.num_steps == steps and len(windows) == len(weights) > 0


def test_what_the_senses_make_of_a_recording_is_kept_for_the_next_stage(world, tmp_path, monkeypatch):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    tensors, _ = read_rows(world.trajectories, processor)
    first = encode_all(model, tensors, latents=True)
    encode_once(model, tensors, world.trajectories, tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(encoded, "encode_all", lambda *_, **__: pytest.fail("encoded again"))
    camera = model.senses["camera"]
    camera.note_refinements([level.flatten(0, -2) for level in first["codes"]["camera"]])  # as stages do
    camera.latents_help.logical_not_()
    again = encode_once(model, tensors, world.trajectories, tmp_path)
    for name, levels in first["codes"].items():
        assert all(torch.equal(one, other) for one, other in zip(levels, again["codes"][name], strict=True))
    assert set(first["latents"]) == set(again["latents"]) == {"camera", "place"}
    assert all(torch.equal(first["latents"][name], again["latents"][name]) for name in first["latents"])
    assert torch.equal(first["prefix"], again["prefix"]) and first["text"] == again["text"] == {}
    with torch.no_grad():
        model.senses["camera"].stem.bias += 1e-3  # other senses
    calls = []
    monkeypatch.setattr(encoded, "encode_all", lambda *_, **__: calls.append("anew") or first)
    encode_once(model, tensors, world.trajectories, tmp_path)
    encode_once(model, tensors, world.trajectories, None)
    assert calls == ["anew", "anew"]
    encoded.forget(tmp_path)
    assert kept.suffix == ".safetensors" and list(tmp_path.iterdir()) == []


# one preprocessing: what training reads of a recording is what the processor gives


FEATURES = {
    "observation.camera": {"kind": "image", "shape": [16, 8, 3]},
    "observation.arm": {"kind": "vector", "dim": 2, "low": [-1, -1], "high": [1, 1]},
    "observation.mission": {"kind": "text", "every_step": False},
    "observation.said": {"kind": "text", "every_step": True},
}
ACTIONS = {
    "discrete": ({"kind": "discrete", "n": 3}, np.array([2, 0, 1, 0, 2, 0])),
    "vector": (
        {"kind": "vector", "dim": 1, "low": [2], "high": [3]},
        np.array([[2.5], [3], [0], [2], [2.2], [0]], np.float32),
    ),
    "text": ({"kind": "text"}, np.array(["go", "<camera.0:1>", "", "open the door", "go", ""])),
}


def recorded(kind="discrete", **changes):
    """Two episodes of two actions, every kind of sense, actions of one kind; texts that look like codes among them."""
    described, actions = ACTIONS[kind]
    generator = np.random.default_rng(0)
    observations = {
        "camera": generator.integers(0, 256, (6, 3, 16, 8), dtype=np.uint8),
        "arm": generator.uniform(-1, 1, (6, 2)).astype(np.float32),
        "mission": np.array(["pick up <camera.0:1>"] * 3 + ["go"] * 3),
        "said": np.array(["go", "<camera.0:2>", "open the red door", "", "go", "the key is red"]),
    } | changes
    return Trajectories(
        features=FEATURES | {"action": described},
        observations=observations,
        actions=actions,
        rewards=np.zeros(6, np.float32),
        dones=np.zeros(6, bool),
        truncateds=np.zeros(6, bool),
        action_is_pad=np.array([False, False, True] * 2),
        episode=np.array([0, 0, 0, 1, 1, 1]),
        episode_starts=np.array([0, 3]),
        episode_lengths=np.array([3, 3]),
        episode_indices=np.array([0, 1]),
        tasks=["", ""],
        environments=["e", "e"],
        seeds=[0, 1],
        fingerprints=["a", "b"],
    )


@pytest.fixture(scope="module")
def words():
    tokenizer = PanTokenizer.train(["go", "open the red door", "pick up the key", "the key is red"], vocab_size=320)
    return PanTokenizer.from_backbone(tokenizer, Vocabulary.build(len(tokenizer), 512, {"camera.0": (8, 8)}))


def configured(trajectories, tokenizer, **options):
    """Senses and action of a model built on a recording."""
    senses = {}
    for name, values in trajectories.observations.items():
        feature, given = feature_of(trajectories.features[f"observation.{name}"]), options.get(name, {})
        senses[name] = feature.make_sense(name, values, trajectories.episode, tokenizer, given)
    feature = feature_of(trajectories.features["action"])
    action = feature.make_action(trajectories.actions, tokenizer, options.get("action", {}))
    return SimpleNamespace(senses=senses, action=action, context_steps=1)


def built(trajectories, tokenizer, **options):
    """The processor that belongs to such a model."""
    config = configured(trajectories, tokenizer, **options)
    senses = {name: sense.to_dict() for name, sense in config.senses.items()}
    return PanProcessor(tokenizer, senses=senses, action=config.action.to_dict())


def leaves(batch):
    return {**batch["observation"], "action": batch["action"]}


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_batch_from_a_recording_is_the_processor_s_bit_for_bit(kind, words):
    trajectories = recorded(kind)
    processor = built(trajectories, words)
    observation, actions = read_rows(trajectories, processor)
    assert observation["camera"].data_ptr() == trajectories.observations["camera"].ctypes.data  # no copy
    windows = Windows(trajectories, observation, actions, 2, False, {"mission"})
    found = trajectories.observations
    given = {
        "camera": np.moveaxis(found["camera"], 1, -1).reshape(2, 3, 16, 8, 3),
        "arm": found["arm"].reshape(2, 3, 2),
        "mission": found["mission"][[0, 3]].tolist(),
        "said": found["said"].reshape(2, 3).tolist(),
    }
    taken = trajectories.actions.reshape(2, 3, *trajectories.actions.shape[1:])[:, :2]
    expected = leaves(processor(observation=given, action=taken.tolist() if kind == "text" else taken))
    config = configured(trajectories, words)
    reader = WindowReader(trajectories, processor, SimpleNamespace(config=config, device="cpu"))
    for batch in (windows.__getitems__([0, 1]), reader.batch(np.array([0, 3]), 2)):
        for name, values in leaves(batch).items():
            assert values.dtype == expected[name].dtype and torch.equal(values, expected[name]), name
    assert expected["mission"].max() < 512 and expected["said"].max() < 512  # what spells a code stays words


def test_a_text_that_is_too_long_is_refused_at_building_and_at_reading_and_clip_cuts_it(words):
    short, long = recorded(), recorded(said=np.array(["go"] * 5 + ["open the red door " * 40]))
    with pytest.raises(
        ValueError, match=r"Sense 'said': 'open the red .*' is \d+ tokens long, expected at most 64. B"
    ):
        built(long, words)
    with pytest.raises(ValueError, match="expected at most 3. Build the model with max_length=.*, or with clip=True"):
        built(short, words, said={"max_length": 3})
    with pytest.raises(ValueError, match=r"max_length=(\d+) \(`--sense said.max_length=\1`\)"):
        built(long, words)
    with pytest.raises(
        ValueError, match=r"said: 'open the red .* tokens long, .* build the model with a larger max_l"
    ):
        read_rows(long, built(short, words))
    with pytest.warns(UserWarning, match="Sense 'said': 1 of 2 texts have more than 64 tokens and are cut"):
        rows, _ = read_rows(long, built(long, words, said={"clip": True}))
    assert rows["said"].shape == (6, 64)


def test_texts_that_change_have_room_for_longer_ones_than_were_recorded(words):
    text = "open the red door " * 5
    length = len(words.text_ids([text])[0])
    made = feature_of(FEATURES["observation.said"]).make_sense(
        "said", np.array(["go", text]), np.zeros(2, int), words, {}
    )
    assert length > 8 and made.every_step and made.max_length == length + max(2, length // 4)


def test_the_longest_of_all_texts_is_given_room(words):
    texts = np.array([f"go {number}" for number in range(6000)])
    sense = feature_of(FEATURES["observation.said"]).make_sense(
        "said", np.append(texts, "pick up the key, open the red door"), np.zeros(6001, int), words, {}
    )
    assert sense.max_length == len(words.text_ids(["pick up the key, open the red door"])[0]) + 2


def test_a_recording_without_a_sense_of_the_model_is_refused(words):
    processor, trajectories = built(recorded(), words), recorded()
    del trajectories.observations["arm"]
    with pytest.raises(ValueError, match=r"\['arm'\] are not in the recording"):
        read_rows(trajectories, processor)
