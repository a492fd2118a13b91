"""`pipeline("pan-simulate", model=folder)`: raw observations and actions in, imagined observations out.

The shortest way to use a checkpoint: model and processor are loaded together and checked against one another, and
everything a user sees is as the environment has it (frames with their channels last, texts as strings).
"""

import os
from collections.abc import Mapping

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline

TASK = "pan-simulate"
_SIMULATE = ("num_rollouts", "temperature", "seed", "effort")


class SimulationPipeline(Pipeline):
    """Imagines what follows from actions.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): of one checkpoint; `pipeline` loads both from its folder.
        num_rollouts, temperature, seed, effort: as in [`PanModel.simulate`]; here or with each call.
        output_type (`str`): of images: "np", or "pil".

    Raises:
        ValueError: model and processor do not belong together, or the model has no senses.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model, *args, **kwargs):
        if isinstance(model, str | os.PathLike):
            raise ValueError(f"`model` must be a PanModel; `pipeline({TASK!r}, model={str(model)!r})` loads one.")
        super().__init__(model, *args, **kwargs)
        if not getattr(self.model, "is_world_model", False):
            kind = type(self.model).__name__
            raise ValueError(f"{TASK} needs a world model, a PanModel with senses; got {kind} without any.")
        self.processor.check_model(self.model)

    def __call__(self, inputs, **kwargs):
        """Imagines.

        Args:
            inputs (`dict`, or a list of them): `observation`, what was seen, and `actions`, those to come; also
                `past_actions`, between the frames, where the observation has several. Each as [`PanProcessor`] takes
                it; a batch in one dict is `(B, T, ...)`.

        Returns:
            `dict` (or a list of them), N = B * num_rollouts rows, those of one beginning one after the other, H
            actions: `observation`, by sense images uint8 `(N, H, height, width, C)` (or nested lists of PIL images),
            vectors float32 `(N, H, D)`, texts as lists of lists of `str`; `reward`, `continuation` (the probability
            that the episode goes on) and `log_prob` (of the codes, in nats), float32 `(N, H)`.

        Raises:
            ValueError: an input that is no such dict, whatever the processor refuses, or a `batch_size`.
        """
        if (kwargs.get("batch_size") or self._batch_size or 1) != 1:
            raise ValueError(f"{TASK} takes a batch as one input of shape (B, T, ...); leave out `batch_size`.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, output_type: str | None = None, **simulate):
        unknown = sorted(set(simulate) - set(_SIMULATE))
        if unknown:
            raise ValueError(f"{TASK} knows no {unknown}; it takes {[*_SIMULATE, 'output_type']}.")
        return {}, simulate, {} if output_type is None else {"output_type": output_type}

    def preprocess(self, inputs):
        names = {"observation", "actions", "past_actions"}
        if not isinstance(inputs, Mapping) or not {"observation", "actions"} <= set(inputs) <= names:
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f"Expected a dict with observation, actions and maybe past_actions, got {got}.")
        seen = self.processor(observation=inputs["observation"], action=inputs.get("past_actions"))
        return {"seen": seen.data, "actions": self.processor(action=inputs["actions"])["action"]}

    def _forward(self, inputs, **simulate):
        belief = self.model.perceive(**inputs["seen"])
        actions = inputs["actions"]
        if len(actions) == 1:  # one plan for the whole batch
            actions = actions.expand(len(belief), *actions.shape[1:])
        futures = self.model.simulate(belief, actions, **simulate)
        config = self.model.config
        senses = [name for name in config.senses if name not in config.prefix_senses]
        return {
            "observation": {name: futures.decode(name) for name in senses},
            "reward": futures.reward,
            "continuation": futures.continue_prob,
            "log_prob": futures.log_prob,
        }

    def postprocess(self, futures, output_type: str = "np"):
        observation = self.processor.decode_observation(futures.pop("observation"), output_type=output_type)
        return {"observation": observation} | {name: value.float().numpy() for name, value in futures.items()}


if TASK not in PIPELINE_REGISTRY.supported_tasks:  # a reload would be told off
    PIPELINE_REGISTRY.register_pipeline(TASK, SimulationPipeline, pt_model=AutoModel, type="multimodal")
