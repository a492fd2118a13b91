"""Configuration of a PAN world model: a causal language model plus senses, an action, and how they are wired.

`text_config` is the backbone's own configuration (that name is the one Transformers looks for). Everything a
checkpoint needs to be rebuilt is here, the table of vocabulary segments included.
"""

from packaging.version import Version
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .schedulers_pan import check_latent_head
from .sense_configuration_pan import action_from_dict, sense_from_dict

VERSION = "0.1.0"  # of this code; each checkpoint names the version that wrote it, `pan_version`

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
    "mended": 1.0,
    "generative": 1.0,
    "reconstruction": 1.0,
    "commitment": 0.25,
    "reward": 1.0,
    "continuation": 1.0,
    "inverse_dynamics": 0.1,
    "switch": 1.0,
}


def check_loss_weights(given: dict) -> dict[str, float]:
    """`given`, if it is weights by name of a loss. Raises ValueError: a name is unknown, or a weight no number of at
    least 0."""
    if not isinstance(given, dict) or set(given) - set(LOSS_WEIGHTS):
        unknown = sorted(set(given) - set(LOSS_WEIGHTS)) if isinstance(given, dict) else []
        told = f"has unknown names {unknown}; it takes" if unknown else "takes weights by"
        raise ValueError(f"`loss_weights` {told} names of {sorted(LOSS_WEIGHTS)}, got {given!r}.")
    wrong = {name: weight for name, weight in given.items() if not isinstance(weight, int | float) or not weight >= 0}
    if wrong:
        raise ValueError(f"`loss_weights` takes numbers of at least 0, got {wrong}.")
    return given


class PanConfig(PreTrainedConfig):
    """Configuration of [`PanModel`].

    Args:
        text_config (`dict` or `PreTrainedConfig`): the backbone, any causal language model.
        senses (`dict[str, ImageSense | VectorSense | TextSense]`): named channels of observation; may be empty, then
            the model is its backbone.
        action (`DiscreteAction | VectorAction | TextAction`, *optional*): required as soon as there is a sense.
        segments (`dict[str, list[int]]`): name of each run of code ids -> `[offset, capacity]`; names are
            `<sense>.<level>` and `action.<level>`, and `<sense>.merges` and `action.merges` for merged tokens.
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
        change_weight (`float`): weight of the codes that change in the cross-entropy of a level.
        motion_weight, rarity_weight (`float`): weights of pixels that move, and of pixels unlike the usual frame, in
            the reconstruction loss, beside 1 for every pixel.
        adapter_dim (`int`): width of the local adapter that reads codes out of a place.
        adapter_blocks (`int`): its depth; more of them where things move by fractions of a code.
        crop_places (`int`): side of the square of places around what changes that readouts of images are trained on in
            stage `dynamics`, see `crops_pan`; 0: whole frames.
        focus_share (`float`): share of the training batches that look only at the places a glance picks, see
            `focus_pan`; nothing where level 0 is sampled as a sentence.
        block_dropout (`float`): share of states whose finer levels are made absent in training, so that any prefix of
            blocks is a state to go on from.
        context_noise (`float`): share of the states that predictions are made from that are wrong in a few places in
            training, against drift, see `disturbance_pan`.
        latent_head (`dict`): `denoiser` and `scheduler`, each a diffusers configuration with `_class_name`, and
            `num_inference_steps`.
        latent_feedback (`bool`): whether predicted latents enter the trunk of the next imagined step.
        latent_noise (`float`): standard deviation of the noise on the trunk's latents in training, against drift.
        latent_dropout (`float`): share of states whose latents are left out of the trunk in training.
        reward_bound (`float`): rewards are read as a distribution over symlog bins within plus and minus this.
        loss_weights (`dict[str, float]`): weight of each named loss.
        backbone_is_pretrained (`bool`): the backbone already knows its words, so stage 2 (`pretrain_backbone`) has
            nothing to do. `from_backbone` sets it for a backbone that was loaded and not made.

    Raises:
        ValueError: settings of a newer version that this one does not know, senses without an action, an unknown loss
            name, an unknown `level0_sampling`, crops of sentences, a share outside 0 to 1, or a scheduler or denoiser
            that does not fit (`schedulers_pan`).
    """

    model_type = "pan"
    sub_configs_defaults = {"text_config": SubConfigSpec(AutoConfig, model_type="qwen3", init_kwargs=_TINY_BACKBONE)}
    keys_to_ignore_at_inference = ["past_key_values", "losses"]

    text_config: dict | PreTrainedConfig | None = None
    senses: dict | None = None
    action: dict | None = None
    segments: dict | None = None
    extensions: dict | None = None
    text_size: int | None = None
    text_capacity: int | None = None
    code_capacity: int = 0
    vocabulary_digest: str | None = None
    context_steps: int = 1
    fold_levels: bool = True
    level0_sampling: str = "parallel"
    copy_bias: float = 2.0
    change_weight: float = 3.0
    motion_weight: float = 15.0
    rarity_weight: float = 9.0
    adapter_dim: int = 48
    adapter_blocks: int = 1
    crop_places: int = 0
    focus_share: float = 0.5
    block_dropout: float = 0.1
    context_noise: float = 0.0
    latent_head: dict | None = None
    latent_feedback: bool = False
    latent_noise: float = 0.1
    latent_dropout: float = 0.5
    reward_bound: float = 10.0
    loss_weights: dict | None = None
    backbone_is_pretrained: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        _check_version(kwargs.pop("pan_version", VERSION), set(kwargs))
        # by name, because the order decides who stands where, and a saved configuration is sorted
        self.senses = {name: sense_from_dict(name, values) for name, values in sorted((self.senses or {}).items())}
        self.action = action_from_dict(self.action) if self.action is not None else None
        if self.senses and self.action is None:
            raise ValueError("A world model needs an action: got senses but `action=None`; pass one.")
        if self.context_steps < 1:
            raise ValueError(f"`context_steps` must be at least 1, got {self.context_steps}.")
        if self.level0_sampling not in ("parallel", "autoregressive"):
            raise ValueError(
                f"`level0_sampling` must be 'parallel' or 'autoregressive', got {self.level0_sampling!r}."
            )
        if self.crop_places < 0 or (self.crop_places and self.level0_sampling == "autoregressive"):
            raise ValueError(
                f"`crop_places` must be 0 with level0_sampling='autoregressive', since a sentence runs over the whole "
                f"frame, and at least 0 otherwise; got {self.crop_places}."
            )
        for name in ("focus_share", "block_dropout", "context_noise", "latent_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a share, from 0 to 1; got {getattr(self, name)}.")
        self.loss_weights = LOSS_WEIGHTS | check_loss_weights(self.loss_weights or {})
        self.latent_head = {
            "denoiser": {"_class_name": "PlaceDenoiser"},
            "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "num_inference_steps": 1,
        } | (self.latent_head or {})
        check_latent_head(self.latent_head, self.senses)
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
        """The senses, and the action under the name `action`, that are written in codes rather than in words."""
        parts = self.senses | ({"action": self.action} if self.action is not None else {})
        return {name: part for name, part in parts.items() if part.kind != "text"}

    @property
    def place_senses(self) -> dict:
        """The senses that are coded at places (everything but text), in order."""
        return {name: sense for name, sense in self.senses.items() if sense.kind != "text"}

    @property
    def prefix_senses(self) -> dict:
        """The text senses that hold for a whole episode and stand before the first state."""
        return {name: sense for name, sense in self.senses.items() if sense.kind == "text" and not sense.every_step}

    @property
    def text_senses(self) -> dict:
        """The text senses that change with time."""
        return {name: sense for name, sense in self.senses.items() if sense.kind == "text" and sense.every_step}

    @property
    def vocab_size(self) -> int:
        """Rows of the one embedding table, words and codes."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        self.text_config.vocab_size = rows

    def to_dict(self) -> dict:
        output = super().to_dict() | {"pan_version": VERSION}
        output["senses"] = {name: sense.to_dict() for name, sense in self.senses.items()}
        output["action"] = self.action.to_dict() if self.action is not None else None
        return output


def newer_version(written_by: str) -> str:
    """What to do about a checkpoint that a newer version wrote, as a sentence; empty for one that none did."""
    if Version(written_by) <= Version(VERSION):
        return ""
    return (
        f" It was written by pan_hf {written_by}, and this is {VERSION}: update pan_hf, or load it with "
        "trust_remote_code=True where pan_hf is not imported, which runs the code it came with."
    )


def _check_version(written_by: str, fields: set[str]) -> None:
    """A setting that only a newer version knows would quietly be ignored."""
    unknown = sorted(fields - _OF_TRANSFORMERS)
    if unknown and newer_version(written_by):
        raise ValueError(f"config.json has the unknown settings {unknown}.{newer_version(written_by)}")


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
    given = dict.fromkeys(segments, 0)
    for name, (_, capacity) in runs:
        if name != TEXT:
            given[name] = given.get(name, 0) + capacity
    if given != expected:
        raise ValueError(f"`segments` must hold these capacities: {expected}, as the senses say; got {given}.")
    end, last = text_capacity, "the words"
    for name, (offset, capacity) in sorted(runs, key=lambda item: item[1]):
        if offset < end:
            raise ValueError(f"Segment {name!r} starts at row {offset}, inside {last}, which end at row {end}.")
        end, last = offset + capacity, repr(name)


PanConfig.register_for_auto_class("AutoConfig")
