"""PAN: a causal language model turned into a world model.

The whole is one `PreTrainedModel`: sensory encoders h, the backbone f with its one vocabulary of words and learned
codes, a diffusion head for what codes leave over, and decoders g ("Critiques of World Models", section 5.2). This file
holds the parts and how they are wired. What a step of simulation does is in `simulation_pan.py`, what is minimised in
`objectives_pan.py`, where things stand in the sequence in `layout_pan.py`, how it is loaded and saved in
`loading_pan.py`. Without senses the model is its backbone.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .backbone_pan import (
    WordGenerationMixin,
    cache_argument,
    check_backbone,
    check_labels,
    fill_new_rows,
    keep_weights,
    run_trunk,
    trunk_call,
    words_alone,
    words_asked_for,
)
from .blocks_pan import state_blocks
from .codecs_pan import build_action_codec, build_codec, encode_observation
from .configuration_pan import PanConfig, check_settings
from .effort_pan import ChangePredictor, ComputeModel, SwitchHead, focusable
from .embedding_pan import (
    CodeTables,
    EmbeddingTable,
    StateTokenEmbedding,
    check_room,
    check_tied,
    module_dict,
    module_list,
    part_codec,
)
from .growth_pan import VocabularyGrowth
from .heads_pan import InverseDynamicsHead, OutcomeHead
from .latent_head_pan import LatentHead, shift_size
from .layout_pan import StepLayout
from .learning_pan import CodeLearning
from .loading_pan import PanPreTrainedModel, in_float32, load_backbone
from .merging_pan import TokenMerging
from .objectives_pan import LossWithoutLabels, PanOutput, run_objective
from .readout_pan import LevelReadout, drawn_scalars, num_readout_scalars
from .sense_configuration_pan import ACTION
from .simulation_pan import Simulator
from .state_pan import Actions, Belief, State, action_tensors
from .step_pan import CompiledStep, measure_compute
from .validation_pan import check_decodes, check_new_parameters, check_observation, check_values, truth, whole

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _of(
    kind: Callable[[PanModel], T], method: Callable[Concatenate[T, P], R]
) -> Callable[Concatenate[PanModel, P], R]:
    """A method of the model that an object of another class does; it has the signature and the docstring of that one.

    The object is made for each call: it holds the model alone, whose modules adapters and quantisers may replace.
    """

    @functools.wraps(method)
    def call(self: PanModel, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(kind(self), *args, **kwargs)

    return call


class PanModel(PanPreTrainedModel, WordGenerationMixin, metaclass=LossWithoutLabels):
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
        # libraries ask the model itself which weights are tied, PEFT where an adapter is on one of them
        tied = getattr(self.language_model, "_tied_weights_keys", None) or {}
        prefix = "language_model."
        self._tied_weights_keys = {prefix + weight: prefix + source for weight, source in tied.items()}
        # Transformers warns of each name without a module
        present = {name for name in self._keep_in_fp32_modules_strict if len(getattr(self, name, []))}
        self._keep_in_fp32_modules_strict = present
        self.post_init()

    def _build_world(self, config: PanConfig) -> None:
        hidden_size = config.text_config.hidden_size
        check_room(config)
        self.table.register_masks()
        senses = config.coded_senses
        self.layout = StepLayout(config)
        with in_float32():
            self.senses = module_dict({name: build_codec(sense) for name, sense in senses.items()})
        self.state_embeddings = module_dict({n: StateTokenEmbedding(s, hidden_size) for n, s in senses.items()})
        slots = 1 if config.fold_levels else self.layout.num_levels
        self.queries = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(slots, s.num_state_tokens, hidden_size)) for name, s in senses.items()}
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
                for name, sense in senses.items()
            }
        )
        codecs = {name: build_action_codec(part) for name, part in config.actions.items()}
        embeddings = {
            name: StateTokenEmbedding(part, hidden_size)
            for name, part in config.actions.items()
            if part.is_coded and not part.is_token
        }
        # an action of one part has modules of its own: checkpoints older than actions of several name them so
        if ACTION in codecs:
            self.action_codec = codecs.pop(ACTION)
        if ACTION in embeddings:
            self.action_embedding = embeddings.pop(ACTION)
        self.action_codecs, self.action_embeddings = module_dict(codecs), module_dict(embeddings)
        half = -(-config.adapter_dim // 2)
        self.glances = module_dict({n: ChangePredictor(senses[n], hidden_size, half) for n in focusable(config)})
        self.compiled_step = CompiledStep()
        self.blocks = state_blocks(config, self.layout.passes)
        self.switch = SwitchHead(self.blocks, hidden_size, config.adapter_dim)
        if config.text_senses:
            self.text_start = nn.Parameter(torch.zeros(hidden_size))
        width = 2 * config.adapter_dim
        grids = {self.layout.token_starts[n]: s.token_grid for n, s in senses.items() if s.is_grid}
        num_actors = None if config.actors is None else len(config.actors)
        self.outcome = OutcomeHead(hidden_size, width, config.reward_bound, grids, num_actors)
        self.inverse_dynamics = InverseDynamicsHead(hidden_size, width, self.layout.num_action_codes)
        with in_float32():
            self.latent_heads = module_dict(
                {
                    name: LatentHead(sense, 4 * hidden_size + shift_size(config, name), config.latent_head)
                    for name, sense in senses.items()
                    if sense.latent_dim
                }
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
            senses (`dict`): name -> [`ImageSense`], [`VectorSense`], [`DiscreteSense`], [`TextSense`]. None: the model
                is its backbone.
            action: [`DiscreteAction`], [`VectorAction`] or [`TextAction`]; or a `dict` of several by name.
            text_reserve (`int`): ids kept for new words; unused without senses.
            pad_token_id (`int`, *optional*): the id text senses are padded with; the backbone's own by default.
            backbone_kwargs (`dict`, *optional*): for `from_pretrained` of the backbone, e.g. `{"dtype": "bfloat16"}`.
            config: any other field of [`PanConfig`], those of its `training` included.

        Raises:
            ValueError: an unknown field, senses without an action, a window that the backbone's positions cannot hold,
                a sense that would take billions of parameters, a quantised backbone, or one that does not keep to a
                mask of ours (`backbone_pan.check_backbone`).
        """
        check_settings(config)
        text_reserve = whole("text_reserve", text_reserve)
        pad_token_id = None if pad_token_id is None else whole("pad_token_id", pad_token_id)
        language_model = load_backbone(backbone, backbone_kwargs)
        text_size = language_model.get_input_embeddings().weight.shape[0]
        text_capacity = -(-(text_size + text_reserve) // 64) * 64 if senses else text_size
        pan_config = PanConfig(
            text_config=language_model.config,
            senses=senses,
            **({"actions": action} if isinstance(action, dict) and "kind" not in action else {"action": action}),
            text_size=text_size,
            text_capacity=text_capacity,
            attn_implementation=language_model.config._attn_implementation,
            experts_implementation={"text_config": language_model.config._experts_implementation},
            **({"backbone_is_pretrained": bool(language_model.name_or_path)} | config),
        )
        eos = language_model.config.eos_token_id
        candidates = (pad_token_id, language_model.config.pad_token_id, eos[0] if isinstance(eos, list) else eos, 0)
        pan_config.pad_token_id = next(token for token in candidates if token is not None)
        if senses:
            check_backbone(language_model)
            rows = -(-(text_capacity + pan_config.code_capacity) // 64) * 64
            planned = copy.deepcopy(pan_config)
            planned.vocab_size = rows
            check_new_parameters(planned, cls)
            std = float(language_model.get_input_embeddings().weight.detach().float().std())
            language_model.resize_token_embeddings(rows, mean_resizing=False)
            fill_new_rows(language_model, text_size, std)
            pan_config.initializer_range = std
        model = cls(pan_config, language_model=language_model)
        model.table.start_code_rows([name for name, part in pan_config.coded_parts().items() if part.has_digits])
        model.generation_config = copy.deepcopy(language_model.generation_config)
        for name, parameter in model.named_parameters():
            if not name.startswith(tuple(f"{part}." for part in cls._keep_in_fp32_modules_strict)):
                parameter.data = parameter.data.to(language_model.dtype)
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

    grow = _of(VocabularyGrowth, VocabularyGrowth.grow)
    retire = _of(VocabularyGrowth, VocabularyGrowth.retire)

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
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        learn: bool = False,
        **options,
    ) -> Belief:
        """`perceive`, after growing codes for what no code describes if `learn`; the belief's `growths` say what was
        tried. Args: observation, action as for `perceive`; options as for `learn`."""
        action = Simulator(self).check_past(observation, action)  # before anything grows
        if not truth("learn", learn) and options:
            raise ValueError(f"Got {sorted(options)} without `learn=True`; these are options of `learn`.")
        growths = self.learn(observation, action, **options) if learn else []
        belief = self.perceive(observation, action)
        belief.growths = growths
        return belief

    learn = _of(CodeLearning, CodeLearning.learn)
    prune = _of(CodeLearning, CodeLearning.prune)
    description_length = _of(CodeLearning, CodeLearning.description_length)
    to_token_ids = _of(TokenMerging, TokenMerging.to_token_ids)
    from_token_ids = _of(TokenMerging, TokenMerging.from_token_ids)
    merge = _of(TokenMerging, TokenMerging.merge)

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

    perceive = _of(Simulator, Simulator.perceive)
    simulate = _of(Simulator, Simulator.simulate)
    log_prob = _of(Simulator, Simulator.log_prob)
    teacher_forced = _of(Simulator, Simulator.teacher_forced)

    def compile_step(self, disable: bool = False, **options) -> None:
        """Lets every step that is imagined or scored from now on run compiled: `simulate`, `log_prob`, planners.

        Graphs are made by the first steps: for one row, for several, and where there are convolutions for sixteen and
        more. Within these none is made anew when there are other rows, tokens that are looked at, steps that are
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
            ValueError: a sense is missing, was not configured or has another shape; in evaluation mode also values
                out of range.
        """
        check_observation(self.config, observation)
        if not self.training:  # where values come from a recording that was checked
            check_values(self.config, observation)
        return encode_observation(self, observation)

    def decode(self, state: State, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The decoder g for one sense, from any prefix of blocks.

        Args:
            state: with any leading shape.
            sense (`str`): which.
            num_levels (`int`, *optional*): levels to use, coarse first; all by default.
            latents (`bool`, *optional*): use the state's latents, if it has them and all levels are used; by default
                where they help, see `imagination_pan.update_latents_help`.

        Returns:
            images `(..., C, height, width)` uint8, vectors `(..., dim)` float, symbols `(..., *dims)` int64, text
            `(..., max_length)` ids.

        Raises:
            ValueError: no such sense, or no such prefix of levels.
        """
        check_decodes(self.senses, state, sense, num_levels, latents)
        if sense in state.text:
            return state.text[sense]
        levels = state.codes[sense]
        num_levels = len(levels) if num_levels is None else operator.index(num_levels)
        leading = levels[0].shape[:-1]
        flat = [level.flatten(0, len(leading) - 1) for level in levels[:num_levels]]
        helps = self.senses[sense].latents_help if latents is None else latents
        use_latents = helps and num_levels == len(levels) and sense in state.latents
        flat_latents = state.latents[sense].flatten(0, len(leading) - 1) if use_latents else None
        codec = self.senses[sense]
        return codec.as_output(codec.decode(flat, flat_latents)).unflatten(0, leading)

    # ---- into the backbone

    def embed_state(self, state: State, tables: CodeTables | None = None) -> Tensor:
        """State embeddings of a state with leading shape `(N,)`: `(N, state_length, hidden_size)`. Args: tables, from
        `code_tables`, if they are at hand."""
        tables = tables or self.table.code_tables()
        parts = [
            self.state_embeddings[name](codes, tables.embeddings[name], tables.sizes[name], state.latents.get(name))
            for name, codes in state.codes.items()
        ]
        parts += [self.table.word_rows(ids) for ids in state.text.values()]
        return torch.cat(parts, 1)

    def embed_action(self, action: Tensor | Actions | list[Tensor], tables: CodeTables | None = None) -> Tensor:
        """Actions `(N,)` ints, `(N, dim)` floats or `(N, max_length)` ids, or their parts one after the other ->
        `(N, action_length, hidden_size)`."""
        parts = zip(self.config.action_parts, action_tensors(action), strict=True)
        return torch.cat([part_codec(self, part).embed(values, self, part, tables) for part, values in parts], 1)

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
        codes_in_text: bool | None = None,
        over_all_rows: bool = True,
        **kwargs,
    ) -> CausalLMOutputWithPast | PanOutput:
        """Two models in one: with `input_ids` (or `inputs_embeds`) the causal language model, which says words as its
        backbone does, to the bit until it is trained; with an `objective` the losses of a training stage. An
        `observation` and an `action` without an objective are trained on jointly, so a Trainer of any kind trains on
        what the processor gives.

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
            codes_in_text (`bool`, *optional*): codes are possible in `logits` and `labels`, too, and in what
                `generate` says; `config.codes_in_text` by default, which is False: words alone. Codes may stand in
                `input_ids` either way.
            over_all_rows (`bool`): logits are `(B, L, config.vocab_size)`, the least there is where a row is not
                possible; False: they end with the last word. `generate` asks for False, and takes True, which a
                watermark over all ids needs.

        Returns:
            `CausalLMOutputWithPast`, or [`PanOutput`] with `loss` and its named parts.

        Raises:
            ValueError: neither text nor an objective is given, the objective is unknown, or its inputs are missing or
                do not fit; labels that are no words, without `codes_in_text`.
        """
        if objective is None and observation is not None and action is not None:
            objective = "joint"
        if objective is not None:
            inputs: dict = {"observation": observation, "state": state, "condition": condition, "action": action}
            inputs |= {"reward": reward, "done": done, "importance": importance}
            inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            others = {"position_ids": position_ids, "past_key_values": past_key_values, "inputs_embeds": inputs_embeds}
            others |= {"codes_in_text": codes_in_text}
            return run_objective(self, objective, inputs, kwargs | others)
        if observation is not None:
            raise ValueError("An observation without an action is not trained on, nor read as text; use `perceive`.")
        if input_ids is None and inputs_embeds is None:
            raise ValueError(
                "Give `input_ids` (or `inputs_embeds`) to run the language model, or `objective` with an observation "
                "to train the world model; to imagine, use `perceive` and `simulate`."
            )
        check_tied(self)
        backbone, num_words = self.language_model, None
        words = words_asked_for(self, codes_in_text)
        if words is not None:
            check_labels(labels, words)
            backbone, num_words = words_alone(self, words)
        output = backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{cache_argument(type(self.language_model)): past_key_values if cache is None else cache},  # type: ignore[arg-type]  # a class
            **kwargs,
        )
        logits, loss = output.logits[..., :num_words], None
        if self.is_world_model and num_words != self.config.text_size:  # of these all are active
            logits = self.table.mask_inactive(logits, words)
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=self.table.over_all_rows(logits) if self.is_world_model and over_all_rows else logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=getattr(output, "attentions", None),  # models without attention have none
        )


PanModel.register_for_auto_class("AutoModel")
