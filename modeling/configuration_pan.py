"""Configuration of a PAN world model: a causal language model plus senses, an action, and how they are wired.

`text_config` is the backbone's own configuration (that name is the one Transformers looks for). Everything a
checkpoint needs to be rebuilt is here, the table of vocabulary segments included.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .codecs_pan import action_from_dict, classes_of, sense_from_dict
from .discrete_sense_pan import DiscreteSense  # noqa: F401  # registers itself, as images do through the next one
from .latent_head_pan import check_latent_head
from .sense_configuration_pan import ACTION, Part
from .validation_pan import MOST_WIDE, Number, bounded, check_backbone_sizes, check_fields, checked

VERSION = "0.2.0"  # of this code; each checkpoint names the version that wrote it, `pan_version`

# What saving calls with the folder, and with the classes of the kinds that are configured; see `pan_hf.custom_kinds`.
ON_SAVE: list[Callable[[str, list[type]], None]] = []

# What `PanConfig()` builds when no backbone is given: small enough for a laptop to make by accident.
_TINY_BACKBONE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

TEXT = "text"  # the segment of the words

# Keys of a config.json that are neither fields of ours nor of `PreTrainedConfig`.
_OF_TRANSFORMERS = {"auto_map", "custom_pipelines", "model_type", "name_or_path", "quantization_config", "torch_dtype"}
_OF_TRANSFORMERS |= {"attn_implementation", "experts_implementation", "output_attentions", "num_labels"}
_OF_TRANSFORMERS |= {"bos_token_id", "eos_token_id", "pad_token_id"}

LOSS_WEIGHTS = {
    "codes": 1.0,
    "change": 1.0,
    "vectors": 1.0,
    "text": 1.0,
    "latents": 1.0,
    "latent_reconstruction": 1.0,
    "generative": 1.0,
    "reconstruction": 1.0,
    "commitment": 0.25,
    "reward": 1.0,
    "continuation": 1.0,
    "inverse_dynamics": 0.1,
    "switch": 1.0,
}


# Settings, and losses, that had another name in a config.json of before.
RENAMED, RENAMED_LOSSES = {"crop_places": "crop_tokens"}, {"mended": "latent_reconstruction"}


def check_loss_weights(weights: dict) -> dict[str, float]:
    """Weights by name of a loss. Raises ValueError: a name is unknown, or a weight is no number of at least 0."""
    if isinstance(weights, dict):
        weights = {RENAMED_LOSSES.get(name, name): weight for name, weight in weights.items()}
    if not isinstance(weights, dict) or set(weights) - set(LOSS_WEIGHTS):
        unknown = sorted(set(weights) - set(LOSS_WEIGHTS)) if isinstance(weights, dict) else []
        problem = f"has unknown names {unknown}; it takes" if unknown else "takes weights by"
        raise ValueError(f"`loss_weights` {problem} names of {sorted(LOSS_WEIGHTS)}, got {weights!r}.")
    return checked(TrainingConfig, "loss_weights", weights)


def unknown_names(what: str, unknown: Iterable[str], names: Iterable[str]) -> str:
    """A message about names that nothing has, with those that are meant perhaps."""
    names, unknown = sorted(names), sorted(unknown)
    near = {name: difflib.get_close_matches(name, names, n=2) for name in unknown}
    meant = "; ".join(f"{name!r}: perhaps {' or '.join(map(repr, close))}" for name, close in near.items() if close)
    return f"{what} does not have {unknown}{f' ({meant})' if meant else ''}; it has {names}."


@dataclass
class TrainingConfig:
    """How a world model is trained; nothing of it changes what a checkpoint predicts.

    Args:
        change_weight (`float`): weight of the codes that change in the cross-entropy of a level.
        motion_weight, rarity_weight (`float`): weights of pixels that move, and of pixels unlike the usual frame, in
            the reconstruction loss, beside 1 for every pixel.
        crop_tokens (`int`): side of the square of patch tokens around what changes that readouts of images are trained
            on in stage `dynamics`, see `augmentation_pan`; 0: whole frames.
        focus_share (`float`): share of the training batches that look only at the state tokens that the change
            predictor picks, see `effort_pan`; ignored where level 0 is sampled code by code.
        block_dropout (`float`): share of states whose finer levels are made absent, so that any prefix of blocks is a
            state to go on from.
        context_noise (`float`): share of the states that predictions are made from in which a few codes are wrong,
            against drift, see `augmentation_pan`.
        latent_noise (`float`): standard deviation of the noise on the trunk's latents, against drift.
        latent_dropout (`float`): share of states whose latents are left out of the trunk.
        loss_weights (`dict[str, float]`): weight of each named loss.
        backbone_is_pretrained (`bool`): the backbone already knows its words, so stage 2 (`pretrain_backbone`) has
            nothing to do. `from_backbone` sets it for a backbone that was loaded and not made.

    Raises:
        ValueError: a field of another type or out of range, or an unknown loss name.
    """

    change_weight: Number = bounded(3.0, 0, 1e6)
    motion_weight: Number = bounded(15.0, 0, 1e6)
    rarity_weight: Number = bounded(9.0, 0, 1e6)
    crop_tokens: int = bounded(0, 0, MOST_WIDE)
    focus_share: Number = bounded(0.5, 0, 1)
    block_dropout: Number = bounded(0.1, 0, 1)
    context_noise: Number = bounded(0.0, 0, 1)
    latent_noise: Number = bounded(0.1, 0, 1e6)
    latent_dropout: Number = bounded(0.5, 0, 1)
    loss_weights: dict[str, Number] = bounded({}, 0, 1e6)
    backbone_is_pretrained: bool = False

    def __post_init__(self):
        self.loss_weights = LOSS_WEIGHTS | check_loss_weights(self.loss_weights or {})
        check_fields(self)

    @classmethod
    def from_dict(cls, values: "dict | TrainingConfig | None") -> "TrainingConfig":
        """Of settings by name; the object itself passes through. Raises ValueError for names that it does not have."""
        if isinstance(values, TrainingConfig):
            return values
        if not isinstance(values or {}, dict):
            raise ValueError(f"`training` takes settings by name, {list(TRAINING)}, got {values!r}.")
        settings = {RENAMED.get(name, name): value for name, value in (values or {}).items()}
        if unknown := set(settings) - set(TRAINING):
            raise ValueError(unknown_names("`training`", unknown, TRAINING))
        return cls(**settings)


TRAINING = tuple(item.name for item in fields(TrainingConfig))


class PanConfig(PreTrainedConfig):
    """Configuration of [`PanModel`]: what a checkpoint is, and under `training` how it was trained.

    The settings of `training` may also be given and read by themselves (`PanConfig(change_weight=1.0)`), as they
    stand in the config.json of older checkpoints.

    Args:
        text_config (`dict` or `PreTrainedConfig`): the backbone, any causal language model.
        senses (`dict[str, ImageSense | VectorSense | DiscreteSense | TextSense]`): named channels of observation; may
            be empty, then the model is its backbone.
        action (`DiscreteAction | VectorAction | TextAction`, *optional*): the action of a step, if that has one part;
            short for `actions={"action": ...}`. A model with senses needs an action.
        actions (`dict[str, DiscreteAction | VectorAction | TextAction]`, *optional*): the named parts of the action of
            a step: a motion and a sentence, two actors.
        actors (`list[str]`, *optional*): names of those who are rewarded, where there is more than one reward.
        segments (`dict[str, list[int]]`): name of each run of code ids -> `[offset, capacity]`; names are
            `<sense>.<level>` and `action.<level>`, and `<sense>.merges` and `action.merges` for merged tokens; those
            of another part of the action begin with `action.<name>`.
        extensions (`dict[str, list[list[int]]]`, *optional*): further runs of rows that a segment, or "text", has been
            given, see `runs`.
        text_size (`int`): words the backbone knows.
        text_capacity (`int`): ids below it are words; those from `text_size` on were reserved for words to come.
        code_capacity (`int`): rows reserved for codes, behind the words.
        vocabulary_digest (`str`, *optional*): digest of the ledger this model was trained with.
        context_steps (`int`): steps (state and action) of the trunk that a prediction sees, the current one included.
            1 is a Markov world.
        fold_levels (`bool`): `True`: all levels are read out of one backbone pass; `False`: one pass a level.
        level0_sampling (`str`): `"parallel"`, for worlds that are deterministic, or `"autoregressive"`: the coarsest
            codes are sampled one after the other, so that a future is one possibility and not a mixture of several.
        copy_bias (`float`): initial value of the learned scalar added to the current code's logit; the digits of
            vectors start without.
        adapter_dim (`int`): width of the local adapter that reads codes out of a state token.
        adapter_blocks (`int`): its depth; more of them where things move by fractions of a code.
        latent_head (`dict`): `denoiser` and `scheduler`, each a diffusers configuration with `_class_name` (the
            scheduler one of `latent_head_pan.SCHEDULERS`), and `num_inference_steps`.
        latent_feedback (`bool`): whether predicted latents enter the trunk of the next imagined step.
        reward_bound (`float`): the largest reward, without its sign; rewards are read as a distribution over symlog
            bins within plus and minus this. `build` reads it off the recording.
        codes_in_text (`bool`): whether the language model may say codes where it is not asked: see
            `PanModel.forward`. By default it says words alone.
        training (`TrainingConfig` or `dict`): how it is trained.

    Raises:
        ValueError: a field of another type or out of range, when it is built, loaded or set; settings of a newer
            version that this one does not know, a name like one of these but none of them, senses without an action,
            an unknown `level0_sampling`, crops where it is autoregressive, a scheduler or denoiser that does not fit
            (`latent_head_pan`), or what [`TrainingConfig`] refuses.
    """

    model_type = "pan"
    sub_configs_defaults = {"text_config": SubConfigSpec(AutoConfig, model_type="qwen3", init_kwargs=_TINY_BACKBONE)}
    keys_to_ignore_at_inference = ["past_key_values", "losses"]

    if TYPE_CHECKING:  # once `__post_init__` has filled them in
        text_config: PreTrainedConfig
        pad_token_id: int
        senses: dict
        actions: dict
        segments: dict[str, list[int]]
        extensions: dict[str, list[list[int]]]
        text_size: int
        text_capacity: int
        latent_head: dict
        training: TrainingConfig
        action: Part | None
    else:
        text_config: dict | PreTrainedConfig | None = None
        senses: dict | None = None
        actions: dict | None = None
        segments: dict[str, list[int]] | None = bounded(None, 0, 2**31)
        extensions: dict[str, list[list[int]]] | None = bounded(None, 0, 2**31)
        text_size: int | None = bounded(None, 1, 2**31)
        text_capacity: int | None = bounded(None, 1, 2**31)
        latent_head: dict | None = None
        training: object = None
        action: object = None
    actors: list[str] | None = None
    code_capacity: int = bounded(0, 0, 2**31)
    vocabulary_digest: str | None = None
    context_steps: int = bounded(1, 1, MOST_WIDE)
    fold_levels: bool = True
    level0_sampling: str = "parallel"
    copy_bias: Number = bounded(2.0, -1e4, 1e4)
    adapter_dim: int = bounded(48, 1, MOST_WIDE)
    adapter_blocks: int = bounded(1, 0, 1024)
    latent_feedback: bool = False
    reward_bound: Number = bounded(10.0, 1e-6, 1e30)
    codes_in_text: bool = False
    initializer_range: Number = bounded(0.02, 0, 1e3)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        flat = {RENAMED.get(name, name): kwargs.pop(name) for name in (*TRAINING, *RENAMED) if name in kwargs}
        _check_names(kwargs.pop("pan_version", VERSION), set(kwargs))
        self.training = replace(TrainingConfig.from_dict(self.training), **flat)
        # in order of names: the order decides which segment stands where, and a saved configuration is sorted
        self.senses = {name: sense_from_dict(name, values) for name, values in sorted((self.senses or {}).items())}
        parts = (self.actions or {}) | ({ACTION: self.action} if self.action is not None else {})
        self.actions = {name: action_from_dict(values, name) for name, values in sorted(parts.items())}
        self.action = self.actions.get(ACTION)
        if self.senses and not self.actions:
            raise ValueError("A world model needs an action: got senses but `action=None`; pass one.")
        if self.actors is not None and (not self.actors or len(set(self.actors)) < len(self.actors)):
            raise ValueError(f"`actors` must name those who are rewarded, each once, got {self.actors}.")
        if self.level0_sampling not in ("parallel", "autoregressive"):
            raise ValueError(
                f"`level0_sampling` must be 'parallel' or 'autoregressive', got {self.level0_sampling!r}."
            )
        if self.training.crop_tokens and self.level0_sampling == "autoregressive":
            raise ValueError(
                f"`crop_tokens` must be 0 with level0_sampling='autoregressive', where the codes of a whole frame are "
                f"one sequence; got {self.training.crop_tokens}."
            )
        self.latent_head = {
            "denoiser": {"_class_name": "TokenDenoiser"},
            "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "num_inference_steps": 1,
        } | (self.latent_head or {})
        check_latent_head(self.latent_head, self.senses)
        check_backbone_sizes(self.text_config)
        super().__post_init__(**kwargs)
        # Mirrored, never chosen: PEFT and the Trainer look for it at the top.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.text_size is None:
            self.text_size = self.text_config.vocab_size
        if self.text_capacity is None:
            self.text_capacity = self.text_size
        if self.segments is None:
            self.segments, self.code_capacity = _segment_table(self.coded_parts(), self.text_capacity)
        self.extensions = self.extensions or {}
        _check_segments(self.segments, self.extensions, self.coded_parts(), self.text_capacity)

    def runs(self, segment: str) -> list[list[int]]:
        """The `[offset, capacity]` of each run of rows of a segment ("text": of the words), in the order of its
        tokens."""
        first = [0, self.text_capacity] if segment == TEXT else self.segments[segment]
        return [first, *self.extensions.get(segment, [])]

    def coded_parts(self) -> dict:
        """The senses, and the parts of the action, that are written in codes rather than in words."""
        return {name: part for name, part in (self.senses | self.action_parts).items() if part.is_coded}

    @property
    def action_parts(self) -> dict:
        """The parts of the action by the name of their rows: `action`, and `action.<name>` for those of other
        names."""
        return {name if name == ACTION else f"{ACTION}.{name}": part for name, part in self.actions.items()}

    @property
    def coded_senses(self) -> dict:
        """The senses that are written in codes (everything but text), in order."""
        return {name: sense for name, sense in self.senses.items() if sense.is_coded}

    @property
    def drawing_order(self) -> list[str]:
        """The coded senses in the order in which they are predicted: those that are numbers come first, because the
        readouts of the others are told them."""
        return sorted(self.coded_senses, key=lambda name: self.senses[name].num_scalars == 0)

    @property
    def prefix_senses(self) -> dict:
        """The text senses that hold for a whole episode and stand before the first state."""
        return {name: sense for name, sense in self.senses.items() if sense.is_constant}

    @property
    def text_senses(self) -> dict:
        """The text senses that change with time."""
        return {n: sense for n, sense in self.senses.items() if not (sense.is_coded or sense.is_constant)}

    @property
    def vocab_size(self) -> int:
        """Rows of the one embedding table, words and codes."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        self.text_config.vocab_size = rows

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in Transformers. Raises FileNotFoundError where neither a folder nor a Hub has a configuration."""
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            path = Path(pretrained_model_name_or_path)
            if path.is_file() or (path / "config.json").is_file():
                raise
            raise FileNotFoundError(
                f"{str(path)!r} is neither a folder with config.json nor the name of a model on a Hub that can be "
                f"reached; check the name and the network. {error}"
            ) from error

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As any configuration. Raises ValueError for a kind of sense or action whose file cannot travel."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for write in ON_SAVE:
            write(save_directory, classes_of(self.senses.values(), self.actions.values()))

    def to_dict(self) -> dict:
        output = super().to_dict() | {"pan_version": VERSION}
        output["senses"] = {name: sense.to_dict() for name, sense in self.senses.items()}
        output["action"] = self.action.to_dict() if self.action is not None else None
        others = {name: part.to_dict() for name, part in self.actions.items() if name != ACTION}
        output["actions"] = others or None  # nothing new where there is one part, which older versions read
        output["training"] = asdict(self.training)
        return output

    if not TYPE_CHECKING:  # a checker would let every name pass

        def __getattr__(self, name: str):
            if RENAMED.get(name, name) in TRAINING:  # fields of this class until version 0.1
                return getattr(self.training, RENAMED.get(name, name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value) -> None:
        name = RENAMED.get(name, name)
        if name in TRAINING:
            self.training = replace(self.training, **{name: value})  # which checks it
            return
        super().__setattr__(name, checked(type(self), name, value) if name in _OWN else value)
        if name == ACTION and value is not None and isinstance(vars(self).get("actions"), dict):
            self.actions = self.actions | {ACTION: value}  # one thing: `action` is the part of that name


def newer_version(written_by: str) -> str:
    """What to do about a checkpoint that a newer version wrote, as a sentence; empty for one that none did."""
    if _release(written_by) <= _release(VERSION):
        return ""
    return (
        f" It was written by pan_hf {written_by}, and this is {VERSION}: update pan_hf, or load it with "
        "trust_remote_code=True where pan_hf is not imported, which runs the code it came with."
    )


def _release(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(version))[:3]]


_INHERITED = {item.name for item in fields(PreTrainedConfig)}
_OWN = [item.name for item in fields(PanConfig) if item.name not in _INHERITED]  # beside what any configuration has


def check_settings(names: Iterable[str]) -> None:
    """Raises ValueError for a setting that no configuration has."""
    if unknown := set(names) - {*TRAINING, *RENAMED, *_OWN, *_OF_TRANSFORMERS, *_INHERITED}:
        raise ValueError(unknown_names("PanConfig", unknown, [*TRAINING, *_OWN]))


def _check_names(written_by: str, names: set[str]) -> None:
    """A setting that only a newer version knows, or a misspelt one, would quietly be ignored. Others are passed over:
    Transformers has written many names into a config.json."""
    unknown = sorted(names - _OF_TRANSFORMERS)
    if unknown and newer_version(written_by):
        raise ValueError(f"config.json has the unknown settings {unknown}.{newer_version(written_by)}")
    ours = [*TRAINING, *_OWN]
    misspelt = [name for name in unknown if difflib.get_close_matches(name, ours, n=1, cutoff=0.85)]
    if misspelt:
        raise ValueError(unknown_names("PanConfig", misspelt, ours))


def _segment_table(parts: dict, offset: int) -> tuple[dict[str, list[int]], int]:
    """Lays the code segments one behind the other from `offset`; returns them and the rows they take."""
    segments, start = {}, offset
    for name, part in parts.items():
        for ending, (capacity, _) in part.segments.items():
            segments[f"{name}.{ending}"] = [offset, capacity]
            offset += capacity
    return segments, offset - start


def _check_segments(segments: dict, extensions: dict, parts: dict, text_capacity: int) -> None:
    """A moved or resized segment would quietly read other tokens' rows."""
    expected = {f"{name}.{ending}": size for name in parts for ending, (size, _) in parts[name].segments.items()}
    runs = list(segments.items())
    runs += [(name, run) for name, more in extensions.items() for run in more]
    malformed = [name for name, run in runs if len(run) != 2]
    if malformed:
        raise ValueError(f"Each run of a segment is [offset, capacity]; those of {malformed} are not.")
    capacities = dict.fromkeys(segments, 0)
    for name, (_, capacity) in runs:
        if name != TEXT:
            capacities[name] = capacities.get(name, 0) + capacity
    if capacities != expected:
        raise ValueError(f"`segments` must hold these capacities: {expected}, as the senses say; got {capacities}.")
    end, last = text_capacity, "the words"
    for name, (offset, capacity) in sorted(runs, key=lambda item: item[1]):
        if offset < end:
            raise ValueError(f"Segment {name!r} starts at row {offset}, inside {last}, which end at row {end}.")
        end, last = offset + capacity, repr(name)


PanConfig.register_for_auto_class("AutoConfig")
