"""PAN: a causal language model turned into a world model.

The whole is one `PreTrainedModel`: sensory encoders h, the backbone f with its one vocabulary of words and learned
codes, a diffusion head for what codes leave over, and decoders g ("Critiques of World Models", section 5.2). This file
holds the parts and how they are wired; what a step of simulation does is in `simulation_pan.py`, what is minimised in
`objectives_pan.py`, and where things stand in the sequence in `layout_pan.py`. Without senses it is its backbone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .backbone_pan import cache_argument, check_backbone, fill_new_rows, keep_weights, run_trunk, trunk_call
from .blocks_pan import state_blocks
from .codecs_pan import build_action_codec, build_codec
from .compile_pan import CompiledStep
from .configuration_pan import PanConfig, check_settings
from .effort_pan import ChangePredictor, ComputeModel, Effort, SwitchHead, focusable
from .embedding_pan import (
    CodeTables,
    EmbeddingTable,
    StateTokenEmbedding,
    check_room,
    module_dict,
    module_list,
    part_codec,
)
from .growth_pan import VocabularyGrowth
from .heads_pan import InverseDynamicsHead, OutcomeHead
from .latent_head_pan import LatentHead, shift_size
from .layout_pan import StepLayout
from .learning_pan import NOVEL, CodeLearning, Growth, HeldOut
from .loading_pan import check_folder, check_is_whole, check_loaded, check_writable, explained, layers_alone
from .merging_pan import TokenMerging
from .objectives_pan import OBJECTIVES, PanOutput, by_actor
from .readout_pan import LevelReadout, drawn_scalars, num_readout_scalars
from .sense_configuration_pan import ACTION, check_observation
from .simulation_pan import Simulator
from .state_pan import ABSENT, Actions, Belief, Futures, LogProb, Observation, State, action_tensors, as_action
from .step_pan import measure_compute


class PanPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by PAN models."""

    config: PanConfig
    config_class = PanConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: Collection[str] = ["senses", "latent_heads"]
    processor: Any = None  # that `attach` was given

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As in Transformers, except that tensors which are missing, left over or of another shape are an error, that
        pickles are not read, and that a `quantization_config` is for the backbone's layers alone.

        Raises:
            FileNotFoundError, ValueError: no checkpoint, a damaged file, another kind of model, tensors and
                configuration that do not fit one another (see `loading_pan`), or a quantiser that would convert more
                than layers (see `loading_pan`).
        """
        allowed = kwargs.pop("ignore_mismatched_sizes", False)
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("`use_safetensors=False` would read a pickle; only safetensors are loaded. Leave it out.")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = layers_alone(kwargs["quantization_config"])
        check_folder(pretrained_model_name_or_path)
        with explained(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **kwargs,
            )
        if pretrained_model_name_or_path is not None:
            check_loaded(pretrained_model_name_or_path, info, allowed)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in Transformers; `config.json` names the model's code for `AutoModelForCausalLM` too.

        Raises:
            ValueError: quantised by torchao, see `loading_pan`; or another process has grown the vocabulary in
                `save_directory` otherwise than that of the attached processor. Nothing is written then.
        """
        check_writable(self)
        if self.processor is not None and self.processor.vocabulary is not None:
            self.processor.vocabulary.check_replaces(save_directory)
        code = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModelForCausalLM": code}
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict:
        """Masks stay masks and codes whole numbers: the parts kept in float32 would otherwise load the codebooks' bool
        and int buffers as floats."""
        whole = {name: buffer.dtype for name, buffer in self.named_buffers() if not buffer.is_floating_point()}
        return whole | super()._get_dtype_plan(dtype)

    def _init_weights(self, module: nn.Module) -> None:
        """Our own layers start at unit gain (a 0.02 normal, made for wide transformers, starves a 48-wide adapter)."""
        std = self.config.initializer_range
        if hasattr(module, "reset_pan_parameters"):
            module.reset_pan_parameters(std)  # type: ignore[operator]  # a method of ours
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterDict):  # queries
            for parameter in module.values():
                init.zeros_(parameter)
        else:
            super()._init_weights(module)


def _renamed(old: str, new: str) -> Callable:
    """A method's old name, for one release."""

    def forward(self: PanModel, *args, **kwargs):
        warnings.warn(f"PanModel.{old} is PanModel.{new} now; {old} goes in 0.3.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*args, **kwargs)

    return forward


class PanModel(PanPreTrainedModel, GenerationMixin):
    """A world model around any causal language model.

    Use [`PanModel.from_backbone`] to make one, `from_pretrained` to load one. What it is used for: [`perceive`],
    [`simulate`], [`decode`], [`log_prob`], `generate` for text, and [`grow`] and [`learn`] for new tokens.

    Args:
        config (`PanConfig`): see there.
        language_model (`PreTrainedModel`, *optional*): a causal language model to take over, weights and all.
    """

    # losses here are means over the micro batch, so the Trainer must divide by the accumulation steps
    accepts_loss_kwargs = False
    base_events: int = 0  # of the ledger when it was attached
    base_digest: str | None = None
    live_rows: Tensor  # see `EmbeddingTable`
    born_rows: Tensor

    def __init__(self, config: PanConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        if language_model is not None:
            config.text_config = language_model.config
            keep_weights(language_model)
        self.loss_type = "ForCausalLM"
        self._trunk = trunk_call(self.language_model)
        self.is_world_model = bool(config.senses)
        if self.is_world_model:
            self._build_world(config)
        kept = {name for name in self._keep_in_fp32_modules_strict if len(getattr(self, name, []))}
        self._keep_in_fp32_modules_strict = kept  # those that this model has
        self.post_init()

    def _build_world(self, config: PanConfig) -> None:
        hidden_size = config.text_config.hidden_size
        check_room(config)
        self.table.register_masks()
        places = config.coded_senses
        self.layout = StepLayout(config)
        self.layout.check_positions(config)
        with _in_float32():
            self.senses = module_dict({name: build_codec(sense) for name, sense in places.items()})
        self.state_embeddings = module_dict({n: StateTokenEmbedding(s, hidden_size) for n, s in places.items()})
        slots = 1 if config.fold_levels else self.layout.num_levels
        self.queries = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(slots, s.num_state_tokens, hidden_size)) for name, s in places.items()}
        )
        self.readouts = module_dict(
            {
                name: module_list(
                    LevelReadout(
                        sense,
                        level,
                        hidden_size,
                        config.adapter_dim,
                        config.copy_bias,
                        autoregressive=level == 0 and config.level0_sampling == "autoregressive",
                        num_numbers=num_readout_scalars(config, name),
                        drawn=drawn_scalars(config, name),
                        num_blocks=config.adapter_blocks,
                    )
                    for level in range(sense.num_levels)
                )
                for name, sense in places.items()
            }
        )
        codecs = {name: build_action_codec(part) for name, part in config.actions.items()}
        at_places = [name for name, part in config.actions.items() if part.is_coded and not part.is_token]
        embeddings = {name: StateTokenEmbedding(config.actions[name], hidden_size) for name in at_places}
        if ACTION in codecs:  # the one that checkpoints name so
            self.action_codec = codecs.pop(ACTION)
        if ACTION in embeddings:
            self.action_embedding = embeddings.pop(ACTION)
        self.action_codecs, self.action_embeddings = module_dict(codecs), module_dict(embeddings)
        self.glances = module_dict(
            {
                name: ChangePredictor(places[name], hidden_size, -(-config.adapter_dim // 2))
                for name in focusable(config)
            }
        )
        self.compiled_step = CompiledStep()
        self.blocks = state_blocks(config, self.layout.passes)
        self.switch = SwitchHead(self.blocks, hidden_size, config.adapter_dim)
        if config.text_senses:
            self.text_start = nn.Parameter(torch.zeros(hidden_size))
        width = 2 * config.adapter_dim
        grids = {self.layout.token_starts[n]: s.token_grid for n, s in places.items() if s.is_grid}
        num_actors = None if config.actors is None else len(config.actors)
        self.outcome = OutcomeHead(hidden_size, width, config.reward_bound, grids, num_actors)
        self.inverse_dynamics = InverseDynamicsHead(hidden_size, width, self.layout.num_action_codes)
        with _in_float32():
            told = {n: 4 * hidden_size + shift_size(config, n) for n, s in places.items() if s.latent_dim}
            self.latent_heads = module_dict(
                {name: LatentHead(places[name], size, config.latent_head) for name, size in told.items()}
            )

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        senses: dict | None = None,
        action=None,
        text_reserve: int = 1024,
        pad_token_id: int | None = None,
        backbone_kwargs: dict | None = None,
        **config,
    ) -> PanModel:
        """Turns a causal language model into a world model.

        The backbone's embedding table is resized once, to its words, `text_reserve` words to come and the capacity of
        every codebook; growth later never changes its shape.

        Args:
            backbone (`str` or `PreTrainedModel`): a name or folder for `AutoModelForCausalLM.from_pretrained`, or a
                model, whose weights are taken over (not copied).
            senses (`dict`): name -> [`ImageSense`], [`VectorSense`], [`TextSense`]. None: the model is its backbone.
            action: [`DiscreteAction`], [`VectorAction`] or [`TextAction`]; or a `dict` of several by name.
            text_reserve (`int`): ids kept for new words; unused without senses.
            pad_token_id (`int`, *optional*): the id text senses are padded with; the backbone's own by default.
            backbone_kwargs (`dict`, *optional*): for `from_pretrained` of the backbone, e.g. `{"dtype": "bfloat16"}`.
            config: any other field of [`PanConfig`], those of its `training` included.

        Raises:
            ValueError: an unknown field, senses without an action, a window that the backbone's positions cannot hold,
                a quantised backbone, or one that does not keep to a mask of ours (`backbone_pan.check_backbone`).
        """
        check_settings(config)
        if isinstance(backbone, str):
            backbone = _load_backbone(backbone, backbone_kwargs or {})
        check_is_whole(backbone)
        text_size = backbone.get_input_embeddings().weight.shape[0]
        text_capacity = -(-(text_size + text_reserve) // 64) * 64 if senses else text_size
        pan_config = PanConfig(
            text_config=backbone.config,
            senses=senses,
            **({"actions": action} if isinstance(action, dict) and "kind" not in action else {"action": action}),
            text_size=text_size,
            text_capacity=text_capacity,
            attn_implementation=backbone.config._attn_implementation,
            **({"backbone_is_pretrained": bool(backbone.name_or_path)} | config),
        )
        pan_config.pad_token_id = _first_given(pad_token_id, backbone.config.pad_token_id, _eos(backbone.config), 0)
        if senses:
            check_backbone(backbone)
            rows = -(-(text_capacity + pan_config.code_capacity) // 64) * 64
            std = float(backbone.get_input_embeddings().weight.detach().float().std())
            backbone.resize_token_embeddings(rows, mean_resizing=False)
            fill_new_rows(backbone, text_size, std)
            pan_config.initializer_range = std
        model = cls(pan_config, language_model=backbone)
        model.table.start_code_rows([name for name, part in pan_config.coded_parts().items() if part.has_digits])
        model.generation_config = copy.deepcopy(backbone.generation_config)
        for name, parameter in model.named_parameters():
            if not name.startswith(tuple(f"{part}." for part in cls._keep_in_fp32_modules_strict)):
                parameter.data = parameter.data.to(backbone.dtype)
        return model

    def reset_pan_parameters(self, _std: float) -> None:
        """What begins otherwise than Transformers would have it, and is in none of the modules."""
        if self.is_world_model:
            self.table.reset_masks()
            if self.config.text_senses:
                init.zeros_(self.text_start)

    # ---- the one vocabulary

    @property
    def table(self) -> EmbeddingTable:
        """The rows of the one vocabulary."""
        return EmbeddingTable(self)

    def attach(self, processor) -> None:
        """Ties the model to the processor it was saved with; see `PanProcessor.attach`, which checks first."""
        ledger, is_another = processor.vocabulary, processor is not self.processor
        self.processor = processor
        if ledger is not None and is_another:
            self.base_events, self.base_digest = len(ledger.events), ledger.digest()

    def ledger(self):
        """The ledger of the attached processor. Raises ValueError without one."""
        if self.processor is None or self.processor.vocabulary is None:
            raise ValueError(
                "This model has no ledger to write new tokens into; call `processor.attach(model)` with the processor "
                "it was saved with. The two grow together, and are saved together."
            )
        return self.processor.vocabulary

    def grow(
        self,
        segment: str,
        names: Sequence[str] | None = None,
        descriptions: Sequence[str] | None = None,
        vectors: Tensor | None = None,
        step: int = 0,
    ) -> tuple[int, ...]:
        """Makes tokens active, words, actions or codes that a person names; see [`VocabularyGrowth.grow`]."""
        return VocabularyGrowth(self).grow(segment, names, descriptions, vectors, step)

    def retire(
        self, segment: str, codes: Sequence[int], reason: str = "unused", into: int | None = None, step: int = 0
    ) -> None:
        """Retires codes, which are never chosen or predicted again; see [`VocabularyGrowth.retire`]."""
        VocabularyGrowth(self).retire(segment, codes, reason, into, step)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As Transformers' users call it after `tokenizer.add_tokens`: the words that the tokenizer has and the model
        has not become active. The table has their rows already, so nothing is resized and no id moves.

        Args:
            new_num_tokens (`int`, *optional*): words, `len(tokenizer)`.
            pad_to_multiple_of, mean_resizing: have no meaning here and are ignored.

        Returns:
            the input embeddings.

        Raises:
            ValueError: more words than reserved rows, or words that no attached tokenizer knows.
        """
        if not self.is_world_model:
            return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        VocabularyGrowth(self).start_added_words(new_num_tokens)
        return self.get_input_embeddings()

    def observe(
        self, observation: Mapping[str, Tensor], action: Tensor | None = None, learn: bool = False, **options
    ) -> Belief:
        """`perceive`, after growing codes for what no code describes if `learn`; the belief's `growths` say what was
        tried. Args: observation, action as for `perceive`; options as for `learn`."""
        Simulator(self).check_past(observation, as_action(action))  # before anything grows
        growths = self.learn(observation, action, **options) if learn else []
        belief = self.perceive(observation, action)
        belief.growths = growths
        return belief

    def learn(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        held_out: HeldOut | None = None,
        threshold: float = NOVEL,
        max_new: int = 32,
        step: int = 0,
        will_train: bool = False,
    ) -> list[Growth]:
        """Grows codes for what an observation holds and no code describes; see [`CodeLearning.learn`]."""
        return CodeLearning(self).learn(observation, action, held_out, threshold, max_new, step, will_train)

    def prune(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        held_out: HeldOut | None = None,
        step: int = 0,
    ) -> list[Growth]:
        """Retires codes of images that nothing uses, and twins; see [`CodeLearning.prune`]."""
        return CodeLearning(self).prune(observation, action, held_out, step)

    def description_length(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None = None
    ) -> float:
        """Bits an observation takes, code tokens included; see [`CodeLearning.description_length`]."""
        return CodeLearning(self).description_length(observation, action)

    def to_token_ids(self, part: str, values: Tensor, chunk: int = 1) -> Tensor:
        """Observations or actions `(B, T, ...)` as ids of codes `(B, T // chunk, length)`; see
        [`TokenMerging.to_token_ids`]."""
        return TokenMerging(self).to_token_ids(part, values, chunk)

    def from_token_ids(self, part: str, ids: Tensor, chunk: int = 1) -> Tensor:
        """The inverse of `to_token_ids`; see [`TokenMerging.from_token_ids`]."""
        return TokenMerging(self).from_token_ids(part, ids, chunk)

    write_sentences = _renamed("write_sentences", "to_token_ids")
    read_sentences = _renamed("read_sentences", "from_token_ids")

    def merge(
        self,
        part: str,
        values: Tensor,
        chunk: int = 1,
        held_out: Tensor | None = None,
        count: int = 64,
        min_count: int = 2,
        step: int = 0,
    ) -> list[Growth]:
        """Merges tokens of a part that often stand side by side; see [`TokenMerging.merge`]."""
        return TokenMerging(self).merge(part, values, chunk, held_out, count, min_count, step)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model.base_model

    # ---- imagining, see `simulation_pan`

    def perceive(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None = None, **_
    ) -> Belief:
        """Encodes what was observed into a belief about now; see [`Simulator.perceive`]."""
        return Simulator(self).perceive(observation, action)

    def simulate(
        self,
        belief: Belief,
        actions: Tensor | Mapping[str, Tensor] | Actions,
        num_rollouts: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        expected: Collection[int] = (),
        effort: Effort | str | Collection[str] | None = None,
        reencode: int = 0,
    ) -> Futures:
        """Imagines what follows from actions; see [`Simulator.simulate`]."""
        return Simulator(self).simulate(belief, actions, num_rollouts, temperature, seed, expected, effort, reencode)

    def log_prob(
        self,
        belief: Belief,
        actions: Tensor | Mapping[str, Tensor] | Actions,
        observations: Mapping[str, Tensor],
        latents: bool | None = None,
    ) -> LogProb:
        """log p(o' | o, a) of true next observations; see [`Simulator.log_prob`]."""
        return Simulator(self).log_prob(belief, actions, observations, latents)

    def teacher_forced(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Futures:
        """One-step predictions at every step of a window; see [`Simulator.teacher_forced`]."""
        return Simulator(self).teacher_forced(observation, action, temperature, seed)

    def compile_step(self, disable: bool = False, **options) -> None:
        """Lets every step that is imagined or scored from now on run compiled: `simulate`, `log_prob`, planners.

        Graphs are made by the first steps: for one row, for several, and where there are convolutions for sixteen and
        more. Within these none is made anew when there are other rows, places that are looked at, steps that are
        remembered, weights or tokens. They are neither saved nor copied with the model.

        Args:
            disable (`bool`): leave compiled steps again.
            options: of `torch.compile`: backend, mode, options. Without any, and with the model on CPU, PyTorch's
                compiler writes the calls between its kernels in C++. Each graph is whole (`fullgraph=True`), and what
                is dynamic in it is known.

        Raises:
            ValueError: a model without senses, or an option that is not left to the caller.
        """
        if not self.is_world_model:
            raise ValueError("This model has no senses, so it has no step to compile; see PanModel.from_backbone.")
        if fixed := sorted({"fullgraph", "dynamic", "isolate_recompiles"} & set(options)):
            raise ValueError(f"`compile_step` decides on {fixed} itself; give it backend, mode or options.")
        if not options and self.device.type == "cpu":  # a small model's time goes to calls, and these cost less
            options = {"options": {"cpp_wrapper": True}}
        self.compiled_step = CompiledStep(None if disable else options)

    # ---- encoder h and decoder g

    def encode(self, observation: Mapping[str, Tensor]) -> State:
        """The sensory encoder h: true observations as codes and latents.

        Args:
            observation: for each sense, a tensor with leading shape `(B, T)`: images `(B, T, C, height, width)` uint8
                or float in [-1, 1]; vectors `(B, T, dim)`; text that changes with time `(B, T, max_length)` ids.
                Constant text is not part of a state and is passed over. In which frames a sense is there, if not in
                all: `<sense>.present` `(B, T)` bool, see [`Observation`].

        Returns:
            [`State`] with leading shape `(B, T)`, absent where a sense was.

        Raises:
            ValueError: a sense is missing, was not configured, or has another shape.
        """
        check_observation(self.config, observation)
        observation, state = Observation(observation, self.config.prefix_senses), State({})
        for name in self.config.coded_senses:
            codes, latents = self.senses[name].encode(observation[name])
            absent = _absent(observation, name)
            state.codes[name] = [_blank(level, absent, ABSENT) for level in codes]
            if latents is not None:
                state.latents[name] = _blank(latents, absent, torch.nan)
        texts = self.config.text_senses
        state.text = {name: _blank(observation[name], _absent(observation, name), ABSENT) for name in texts}
        return state

    def decode(self, state: State, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The decoder g for one sense, from any prefix of blocks.

        Args:
            state: with any leading shape.
            sense (`str`): which.
            num_levels (`int`, *optional*): levels to use, coarse first; all by default.
            latents (`bool`, *optional*): use the state's latents, if it has them and all levels are used; by default
                where they help, see `objectives_pan.judge_latents`.

        Returns:
            images `(..., C, height, width)` uint8, vectors `(..., dim)` float, text `(..., max_length)` ids.

        Raises:
            ValueError: no such sense, or no such prefix of levels.
        """
        if sense in state.text:
            return state.text[sense]
        if sense not in self.senses:
            raise ValueError(f"No sense {sense!r} to decode; this model has {sorted([*self.senses, *state.text])}.")
        levels = state.codes[sense]
        num_levels = len(levels) if num_levels is None else num_levels
        if not 1 <= num_levels <= len(levels):
            raise ValueError(f"{sense!r} has levels 1 to {len(levels)}; got num_levels={num_levels}.")
        leading = levels[0].shape[:-1]
        flat = [level.flatten(0, len(leading) - 1) for level in levels[:num_levels]]
        helps = self.senses[sense].latents_help if latents is None else latents
        use_latents = helps and num_levels == len(levels) and sense in state.latents
        given = state.latents[sense].flatten(0, len(leading) - 1) if use_latents else None
        codec = self.senses[sense]
        return codec.as_output(codec.decode(flat, given)).unflatten(0, leading)

    # ---- into the backbone

    def embed_state(self, state: State, tables: CodeTables | None = None) -> Tensor:
        """State embeddings of a state with leading shape `(N,)`: `(N, state_length, hidden_size)`. Args: tables, from
        `code_tables`, if they are at hand."""
        tables = tables or self.table.code_tables()
        parts = [
            self.state_embeddings[name](codes, tables.places[name], tables.sizes[name], state.latents.get(name))
            for name, codes in state.codes.items()
        ]
        parts += [self.table.word_rows(ids) for ids in state.text.values()]
        return torch.cat(parts, 1)

    def embed_action(self, action: Tensor | Actions | list[Tensor], tables: CodeTables | None = None) -> Tensor:
        """Actions `(N,)` ints, `(N, dim)` floats or `(N, max_length)` ids, or their parts one after the other ->
        `(N, action_length, hidden_size)`."""
        parts = zip(self.config.action_parts, action_tensors(action), strict=True)
        return torch.cat([part_codec(self, part).embed(values, self, part, tables) for part, values in parts], 1)

    def embed_step(
        self, state: State, embedded_state: Tensor, action: Tensor, tables: CodeTables | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The trunk of one step, from a state `(N,)`, the same embedded, and actions that are rows of the vocabulary
        by now, `(N, action_length, H)`: `(N, trunk_length, H)`, and by sense the logit of a change at each place
        `(N, P)`. The action is told the gist of the state. Args: tables, from `code_tables`, if they are at hand."""
        tables = tables or self.table.code_tables()
        change, gist = {}, 0.0
        for name, glance in self.glances.items():
            start = self.layout.token_starts[name]
            places = embedded_state[:, start : start + glance.sense.num_state_tokens]
            change[name], found = glance(places, state.codes[name][0], tables.glances[name], action.mean(1))
            gist = gist + found.unsqueeze(1)
        return torch.cat([embedded_state, action + gist if change else action], 1), change

    def embed_queries(
        self, one_pass, embedded_state: Tensor, chosen: dict[str, list[Tensor]], tables: CodeTables
    ) -> Tensor:
        """Queries of a pass of levels, `(N, one_pass.length, hidden_size)`: what each place is, what it holds now, and
        the coarser codes already chosen for it (`chosen[name]`, `(N, n_l)` a level)."""
        parts, start, level = [], 0, one_pass.levels[0]
        for name, sense in self.config.coded_senses.items():
            now = embedded_state[:, start : start + sense.num_state_tokens]
            start += sense.num_state_tokens
            if level >= sense.num_levels:
                continue
            query = now + self.queries[name][level]
            coarser = chosen.get(name, [])[:level]
            if coarser:
                query = query + self.state_embeddings[name].codes(coarser, tables.places[name], tables.sizes[name])
            parts.append(query)
        return torch.cat(parts, 1)

    @functools.cached_property
    def compute_model(self) -> ComputeModel:
        """What each part of a step of simulation costs, counted once while one runs."""
        return measure_compute(self)

    def run_backbone(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache=None) -> Tensor:
        """The backbone without its head. Args: embeddings `(B, L, H)`; mask bool `(1 or B, 1, L, keys)`; positions
        `(L,)`, or `(B, L)` if rows differ; cache, appended to if given. Returns: `(B, L, H)`."""
        return run_trunk(self.language_model, self._trunk, embeddings, mask, positions, cache)

    def prefix_ids(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """The constant text of an episode, `(B, prefix_length)`, or None where the model has none."""
        parts = [observation[name] for name in self.config.prefix_senses]
        return torch.cat(parts, 1) if parts else None

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        objective: str | None = None,
        observation: Mapping[str, Tensor] | None = None,
        state: dict | None = None,
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        reward: Tensor | None = None,
        done: Tensor | None = None,
        condition: dict[str, Tensor] | None = None,
        importance: Tensor | None = None,
        cache=None,
        **kwargs,
    ) -> CausalLMOutputWithPast | PanOutput:
        """Two models in one: with `input_ids` (or `inputs_embeds`) the causal language model over words and codes;
        with an `objective` the losses of a training stage. An `observation` and an `action` without an objective are
        trained on jointly, so a Trainer of any kind trains on what the processor gives.

        Args:
            input_ids, attention_mask, position_ids, past_key_values (or `cache`), inputs_embeds, labels, use_cache,
                logits_to_keep: as in any causal language model.
            objective (`str`): one of `objectives_pan.OBJECTIVES`; see there for what each needs of the rest (`"text"`:
                `input_ids`, `labels` and `attention_mask`). `"joint"` where there are observation and action.
            observation: true observations of windows, leading shape `(B, T + 1)`; constant text `(B, max_length)`.
            state: the same already encoded, `{"codes": ..., "latents": ..., "text": ...}` as in [`State`].
            action: `(B, T, ...)`, by name where it has several parts; reward, done: `(B, T)` float, of the transition
                each action makes; reward `(B, T, A)`, or by name, where there are several actors.
            condition: what is cached for training the latent head or the switch alone.
            importance: `(B,)`, weight of a window in the codes' loss: what makes up for drawing some windows more
                often.

        Returns:
            `CausalLMOutputWithPast`, or [`PanOutput`] with `loss` and its named parts.

        Raises:
            ValueError: neither text nor an objective is given, or the objective is unknown.
        """
        if objective is None and observation is not None and action is not None:
            objective = "joint"
        if objective is not None:
            if objective not in OBJECTIVES:
                raise ValueError(f"Unknown objective {objective!r}; expected one of {sorted(OBJECTIVES)}.")
            given: dict = {"observation": observation, "state": state, "done": done}
            given["action"] = None if action is None else as_action(action)
            given["reward"] = by_actor(self.config, reward)
            given |= {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            return OBJECTIVES[objective](self, condition=condition, importance=importance, **given)
        if input_ids is None and inputs_embeds is None:
            raise ValueError(
                "Give `input_ids` (or `inputs_embeds`) to run the language model, or `objective` with an observation "
                "to train the world model; to imagine, use `perceive` and `simulate`."
            )
        output = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{cache_argument(type(self.language_model)): past_key_values if cache is None else cache},  # type: ignore[arg-type]  # a class
            **kwargs,
        )
        logits = self.table.mask_inactive(output.logits) if self.is_world_model else output.logits
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=getattr(output, "attentions", None),  # models without attention have none
        )


def _absent(observation: Observation, sense: str) -> Tensor | None:
    """In which frames a sense is absent, `(B, T)` bool; None: in none."""
    present = observation.present(sense)
    return None if present is None else ~present


def _blank(values: Tensor, absent: Tensor | None, with_what: float) -> Tensor:
    """Values `(B, T, ...)` replaced where they are absent."""
    if absent is None:
        return values
    return values.masked_fill(absent.view(*absent.shape, *[1] * (values.dim() - 2)), with_what)


@contextlib.contextmanager
def _in_float32():
    """What stays in float32 is made in it, whatever the model around it is made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _load_backbone(name: str, options: dict) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(name, **options)


def _first_given(*values):
    return next(value for value in values if value is not None)


def _eos(config) -> int | None:
    eos = config.eos_token_id
    return eos[0] if isinstance(eos, list) else eos


PanModel.register_for_auto_class("AutoModel")
