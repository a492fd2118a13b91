"""A Trainer of one's own: it trains, evaluates and shows pictures of a model as it does of any other."""

from types import SimpleNamespace

import pytest
import torch
from tiny_worlds import acts, board_world, observe, world_model
from transformers import Trainer, TrainingArguments

from pan_hf import PanModel, PanProcessor
from pan_hf.data.trajectories import load_trajectories
from pan_hf.reporting.tracking import RolloutImages, rollout_pictures
from pan_hf.training import align


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return board_world(tmp_path_factory.mktemp("world"))


class Windows(torch.utils.data.Dataset):
    """Two steps of the board at each row, as the processor gives them."""

    def __init__(self, processor, trajectories):
        self.processor, self.trajectories, self.rows = processor, trajectories, trajectories.windows(2)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        rows = slice(self.rows[index], self.rows[index] + 3)
        found = self.trajectories.observations
        seen = {"camera": found["camera"][rows][None].transpose(0, 1, 3, 4, 2), "place": found["place"][rows][None]}
        seen["mission"] = ["go to the corner"]
        batch = self.processor(observation=seen, action=self.trajectories.actions[rows][None, :2])
        observation = {name: values[0] for name, values in batch["observation"].items()}
        return {"observation": observation, "action": batch["action"][0]}


def own_trainer(model, dataset, folder, **given):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
    )  # fmt: skip
    return Trainer(model=model, args=args, train_dataset=dataset, **given)


@pytest.mark.slow
def test_a_trainer_of_one_s_own_trains_a_world_model_on_what_the_processor_gives(world, tmp_path):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    dataset = Windows(processor, load_trajectories(world.data, "train"))
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    shown = RolloutImages(batch["observation"], batch["action"], every=4)
    pictures = []
    shown.show = lambda *_: pictures.append(1)
    own = own_trainer(model, dataset, tmp_path, data_collator=torch.utils.data.default_collate, callbacks=[shown])
    own.train()
    losses = [entry["loss"] for entry in own.state.log_history if "loss" in entry]
    assert len(losses) == 8 and min(losses[-3:]) < losses[0] and len(pictures) == 2


def test_a_trainer_of_one_s_own_is_told_of_rewards_beyond_the_model_s_bound(tmp_path):
    model = world_model(("touch",))
    seen, steps = observe(model, batch=8, steps=2), torch.arange(8)
    rows = [
        {"observation": {"touch": seen["touch"][row]}, "action": steps[row : row + 1] % 2, "reward": reward}
        for row, reward in enumerate(torch.tensor([[1.0]] * 7 + [[-20.0]]))
    ]
    own = own_trainer(model, rows, tmp_path, data_collator=torch.utils.data.default_collate)
    with pytest.raises(ValueError, match="rewards as large as 20; .*within plus and minus 10 .*reward_bound=40"):
        own.train()


def test_pictures_are_shown_every_so_many_steps_and_at_the_end():
    shown, at = RolloutImages({}, None, every=4), []
    shown.show = lambda model, args, state: at.append(state.global_step)
    for step in range(1, 11):
        control = SimpleNamespace(should_training_stop=step == 10)
        shown.on_step_end(None, SimpleNamespace(global_step=step), control)
    assert at == [4, 8, 10]


def test_a_picture_that_fails_leaves_the_model_in_training(monkeypatch):
    model = world_model(("camera",)).train()
    monkeypatch.setattr(model, "simulate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rollout_pictures(model, observe(model, steps=4), acts(model, 2, 3))
    assert model.training


@pytest.mark.slow
def test_a_trainer_of_one_s_own_trains_the_language_model_on_labels(world, tmp_path):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    ids = processor(text=["go to the corner"])["input_ids"][0]
    own = own_trainer(model, [{"input_ids": ids, "labels": ids}] * 16, tmp_path)
    own.train()
    losses = [entry["loss"] for entry in own.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("is_adapted", [False, True])
def test_a_plain_trainer_evaluates_the_loss_and_keeps_the_best(is_adapted, world, tmp_path):
    from peft import get_peft_model

    from pan_hf.adapters import lora_config

    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    windows, _ = align.make_raw(model, processor, world.trajectories)
    rows = [{name: squeezed(value) for name, value in windows.__getitems__([row]).items()} for row in range(12)]
    model = get_peft_model(model, lora_config(model, r=2)) if is_adapted else model
    given = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "max_steps": 2,
    }
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, **given)
    collate = torch.utils.data.default_collate
    trainer = Trainer(model, args, train_dataset=rows[:8], eval_dataset=rows[8:], data_collator=collate)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and trainer.state.best_metric == min(losses)
    assert trainer.label_names == [] and trainer.evaluate()["eval_loss"] > 0


def squeezed(value):
    return {name: part[0] for name, part in value.items()} if isinstance(value, dict) else value[0]


def test_a_model_takes_columns_of_labels_though_its_class_needs_none():
    import inspect

    from transformers.utils.generic import can_return_loss, find_labels

    assert find_labels(PanModel) == [] and can_return_loss(PanModel)
    assert "labels" in inspect.signature(PanModel.__dict__["forward"]).parameters
