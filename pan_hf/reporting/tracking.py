"""Pictures of what a model imagines while it is trained, for the trackers that a Trainer reports to.

    trainer.add_callback(RolloutImages(observation, action, every=500))

They go to TensorBoard and to trackio, whichever `report_to` names, both from this machine's disk alone; nothing is
sent anywhere. `pip install "pan_hf[tracking]"` brings the two.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pan_hf.features import feature_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
from pan_hf.modeling.state_pan import Actions, Observation
from pan_hf.reporting.figures import Strip
from pan_hf.reporting.strips import shown_senses

TRACKERS = ("tensorboard", "trackio")


def check_trackers(report_to: list[str]) -> None:
    """Raises ImportError, with the line that installs it, for a tracker that is asked for and not installed."""
    missing = [name for name in report_to if name in TRACKERS and importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"`report_to {missing[0]}` needs {missing[0]}: pip install 'pan_hf[tracking]'")


class RolloutImages(TrainerCallback):
    """Imagines from a few windows every so many steps, and at the end, and shows frames imagined below real ones.

    A picture is `rollout/<sense>/<window>`: real frames, imagined ones, and where they differ, the start first.

    Args:
        observation (`dict[str, torch.Tensor]`): by sense `(B, context_steps + H, ...)`, constant text
            `(B, max_length)`: windows that are best held out of training.
        action (`torch.Tensor` or [`Actions`] of `(B, context_steps - 1 + H, ...)`): what is done between frames.
        every (`int`): steps between pictures.
        seed (`int`): of the futures; they are the most likely ones (temperature 0).

    Raises:
        ValueError: there are no images among the observations, no step to imagine, or, when training begins, weights
            that are shared out among processes.
    """

    def __init__(
        self, observation: dict[str, torch.Tensor], action: torch.Tensor | Actions, every: int = 500, seed: int = 0
    ):
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        self.observation, self.action, self.every, self.seed = observation, action, every, seed
        self._writer: SummaryWriter | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError("Pictures need whole weights, and FSDP has shared them out; leave `rollout_every` at 0.")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or control.should_training_stop:
            self.show(model, args, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def show(self, model, args, state) -> None:
        """One picture a window and sense, to every tracker. Every process imagines; the first one writes."""
        pictures = rollout_pictures(model, self.observation, self.action, self.seed)
        if not state.is_world_process_zero:
            return
        if "tensorboard" in args.report_to:
            self._to_tensorboard(pictures, args, state.global_step)
        if "trackio" in args.report_to:
            self._to_trackio(pictures, state.global_step)

    def _to_tensorboard(self, pictures: dict[str, np.ndarray], args, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = self._writer
        if writer is None:
            folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / "runs"
            writer = self._writer = SummaryWriter(str(Path(folder) / "rollouts"))
        for name, picture in pictures.items():
            writer.add_image(name, picture, step, dataformats="HWC")
        writer.flush()

    def _to_trackio(self, pictures: dict[str, np.ndarray], step: int) -> None:
        import trackio

        images = {name: trackio.Image(picture, caption=f"step {step}") for name, picture in pictures.items()}
        trackio.log(images, step=step)


@torch.no_grad()
def rollout_pictures(
    model, observation: dict[str, torch.Tensor], action: torch.Tensor | Actions, seed: int = 0
) -> dict[str, np.ndarray]:
    """By `rollout/<sense>/<window>`, rows of frames as one uint8 picture `(height, width, 3)`: real, imagined, and
    where they differ. Args: as for [`RolloutImages`]; the model's mode is left as it was."""
    config, was_training, before = model.config, model.training, model.config.context_steps
    shown = shown_senses(config)
    if not shown or action.shape[1] < before:
        raise ValueError(
            f"Pictures need an image sense and at least {before} actions; got senses {list(config.senses)} and "
            f"{action.shape[1]} actions."
        )
    on_device = Observation(observation, config.prefix_senses).to(model.device)
    action = action.to(model.device)
    model.eval()
    try:
        belief = model.perceive(on_device.frames(0, before), action[:, : before - 1])
        futures = model.simulate(belief, action[:, before - 1 :], temperature=0.0, seed=seed)
    finally:
        model.train(was_training)
    pictures = {}
    for name in shown:
        to_frames = feature_of(config.senses[name]).to_frames
        for window, imagined in enumerate(futures.decode(name)):
            real = on_device[name][window, before - 1 :]
            strip = Strip(to_frames(real), to_frames(torch.cat([real[:1], imagined])))
            rows = [np.concatenate(list(frames), 1) for _, frames in strip.rows()]
            pictures[f"rollout/{name}/{window}"] = np.concatenate(rows, 0)
    return pictures
