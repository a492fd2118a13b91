"""A world model made to fit a recording: senses and action from what was recorded, words from its texts.

The backbone is any causal language model by name or folder, or one of `PRESETS`: small random ones that a laptop
trains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pan_hf.arguments import a_seed, checked
from pan_hf.console import without_bars
from pan_hf.data.trajectories import Trajectories
from pan_hf.deprecated import old_names
from pan_hf.features import action_column, action_parts, feature_of
from pan_hf.modeling import PanModel
from pan_hf.modeling.heads_pan import reward_bound
from pan_hf.modeling.loading_pan import explained
from pan_hf.tokenization import PanProcessor, PanTokenizer
from pan_hf.tokenization.vocabulary_pan import Vocabulary

__getattr__ = old_names(__name__)  # `save_checkpoint` was here

# width and depth of the random Qwen3 of each preset
PRESETS = {
    "debug": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
}


@checked(seed=a_seed)
@without_bars()
def build(
    trajectories: Trajectories,
    backbone: str | Path = "tiny",
    sense_options: dict[str, dict] | None = None,
    seed: int = 0,
    layers: int | None = None,
    **config,
) -> tuple[PanModel, PanProcessor]:
    """An untrained world model and its processor, for a recording.

    Args:
        trajectories: the training split; senses, bounds (those of rewards too) and texts are read off it.
        backbone (`str`): a preset (`debug`, `tiny`, `small`), or a name or folder of any causal language model.
        sense_options (`dict`, *optional*): by sense, fields that override what the recording suggests, e.g.
            `{"camera": {"patch_size": 4}}`; under `action` those of the action, under `action.<part>` of a part of it.
        seed (`int`): of the random weights.
        layers (`int`, *optional*): the backbone's first layers that are used; all by default.
        config: any field of [`PanConfig`], e.g. `context_steps=3`.

    Raises:
        ValueError: a reward that is not finite, an image that no patch size fits, a text that is too long, an option
            for a sense that was not recorded, a field that the sense does not have, a sense that would take billions
            of parameters, or more `layers` than the backbone has.
    """
    from transformers import set_seed

    options, parts = dict(sense_options or {}), action_parts(trajectories.features)
    names = {*trajectories.observations, *map(action_column, parts)}
    if unknown := sorted(set(options) - names):
        raise ValueError(f"Options for unknown senses {unknown}; the recording has {sorted(names)}.")
    set_seed(seed)
    if backbone in PRESETS:
        tokenizer = PanTokenizer.train(recorded_texts(trajectories), vocab_size=512)
    else:
        tokenizer = _tokenizer_of(backbone)
    senses = {
        name: _made(
            f"Sense {name!r}",
            feature_of(trajectories.features[f"observation.{name}"]).make_sense,
            name,
            values,
            trajectories.episode,
            tokenizer,
            options.get(name, {}),
        )
        for name, values in trajectories.observations.items()
    }
    actions = {
        name: _made(
            f"Action {name!r}",
            part.make_action,
            trajectories.actions_by_part[name],
            tokenizer,
            options.get(action_column(name), {}),
        )
        for name, part in parts.items()
    }
    config.setdefault("reward_bound", reward_bound(trajectories.all_rewards()))
    language_model = _language_model(backbone, tokenizer, layers)
    model = PanModel.from_backbone(
        language_model,
        senses,
        actions,
        pad_token_id=tokenizer.pad_token_id,
        text_reserve=256,
        **({"actors": list(trajectories.actor_rewards) or None} | config),
    )
    return model, make_processor(model, tokenizer)


def make_processor(model: PanModel, tokenizer: PanTokenizer) -> PanProcessor:
    """The processor that belongs to a model; their ledgers' digests are made equal.

    Args:
        model: with senses.
        tokenizer: the backbone's words, without a ledger.
    """
    config = model.config
    words = max(tokenizer.get_vocab().values()) + 1
    if words < config.text_size:  # rows that only fill the backbone's table up are no words yet
        model.table.active[words : config.text_size] = model.table.ever_active[words : config.text_size] = False
        config.text_size = words
    sizes = {}
    for name, part in config.coded_parts().items():
        for ending, (capacity, _) in part.segments.items():
            sizes[f"{name}.{ending}"] = (capacity, int(model.table.active_codes(name, ending).sum()))
    vocabulary = Vocabulary.build(config.text_size, config.text_capacity, sizes)
    config.vocabulary_digest = vocabulary.digest()
    return PanProcessor(
        tokenizer=tokenizer,
        senses={name: sense.to_dict() for name, sense in config.senses.items()},
        actions={name: action.to_dict() for name, action in config.actions.items()},
        vocabulary=vocabulary,
    )


def _language_model(backbone: str | Path, tokenizer: PanTokenizer, layers: int | None):
    if backbone not in PRESETS:
        return _pretrained(backbone, layers)
    preset = PRESETS[backbone] | ({} if layers is None else {"num_hidden_layers": layers})
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        num_key_value_heads=preset["num_attention_heads"],
        head_dim=preset["hidden_size"] // preset["num_attention_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **preset,
    )
    return AutoModelForCausalLM.from_config(config)


def _pretrained(backbone: str | Path, layers: int | None):
    if layers is None:
        return AutoModelForCausalLM.from_pretrained(backbone)
    config = AutoConfig.from_pretrained(backbone)
    if layers > config.num_hidden_layers:
        raise ValueError(
            f"`layers`: {str(backbone)!r} has {config.num_hidden_layers} layers, got {layers}. Name as many or fewer."
        )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.num_hidden_layers = layers
    with explained(backbone):  # without a report of the layers that are left out
        model, info = AutoModelForCausalLM.from_pretrained(backbone, config=config, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{str(backbone)!r} lacks {sorted(info['missing_keys'])[:4]} of its first {layers} layers.")
    return model


def recorded_texts(trajectories: Trajectories) -> list[str]:
    """Every different text of a recording: tasks, text observations and text actions."""
    columns = {f"observation.{name}": values for name, values in trajectories.observations.items()}
    columns |= {action_column(name): values for name, values in trajectories.actions_by_part.items()}
    said = {text for name, column in columns.items() for text in feature_of(trajectories.features[name]).texts(column)}
    return sorted(said.union(trajectories.tasks) - {""})


def _made(what: str, make: Callable, *arguments: Any) -> Any:
    """What `make` returns. Raises ValueError, which says of what, where an option is none, or has a wrong value."""
    try:
        return make(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) if what in str(error) else f"{what}: {error}") from error


def check_backbone(backbone: str | Path) -> None:
    """Raises ValueError for a backbone that `build` would not take."""
    if backbone not in PRESETS:
        _tokenizer_of(backbone)


def _tokenizer_of(backbone: str | Path) -> PanTokenizer:
    try:
        return PanTokenizer.from_backbone(AutoTokenizer.from_pretrained(backbone))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`backbone` {str(backbone)!r} is neither one of {sorted(PRESETS)} nor a language model with a tokenizer, "
            f"by name or folder: {error}"
        ) from error
