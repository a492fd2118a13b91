"""What a model refuses: observations and actions that do not fit its configuration, with what was expected instead.

The processor says more, and sooner; these checks are for tensors that did not come from one. They look at shapes, and
at the values of actions, because an action out of range would quietly read another token's row.
"""

from torch import Tensor

_OUTSIDE = 1e-3  # of the range: rounding in a simulator, not a wrong unit


def _shape(sense) -> str:
    if sense.kind == "text":
        return f"(B, T, {sense.max_length})" if sense.every_step else f"(B, {sense.max_length})"
    inner = (sense.channels, sense.height, sense.width) if sense.kind == "image" else (sense.dim,)
    return f"(B, T, {', '.join(map(str, inner))})"


def check_observation(config, observation: dict[str, Tensor], needs_prefix: bool = False) -> None:
    """Raises ValueError unless every sense is there, in its shape and with equally many frames.

    Args:
        config (`PanConfig`): its senses.
        observation: by sense, with leading shape `(B, T)`, constant text `(B,)`.
        needs_prefix (`bool`): whether constant text must be there too.
    """
    known = set(config.senses)
    missing = sorted((known if needs_prefix else known - set(config.prefix_senses)) - set(observation))
    unknown = sorted(set(observation) - known)
    if missing or unknown:
        raise ValueError(
            f"The observation must hold the senses {sorted(known)}; missing {missing}, unknown {unknown}."
        )
    for name, values in observation.items():
        expected = _shape(config.senses[name])
        inner = [int(size) for size in expected.strip("()").split(", ") if size.isdigit()]
        if values.dim() != expected.count(",") + 1 or list(values.shape[-len(inner) :]) != inner:
            raise ValueError(f"Sense {name!r}: expected a tensor {expected}, got {tuple(values.shape)}.")
    leading = {n: tuple(v.shape[:2]) for n, v in observation.items() if n not in config.prefix_senses}
    if len(set(leading.values())) > 1:
        raise ValueError(f"Every sense needs equally many rows and frames, got (B, T) of {leading}.")
    rows = {len(values) for values in observation.values()}
    if len(rows) > 1:
        raise ValueError(f"Constant text needs a row for each of the batch, got batches of {sorted(rows)}.")


def check_actions(described, actions: Tensor) -> None:
    """Raises ValueError where actions `(B, T, ...)` are of another kind than `described`, or out of its range."""
    if described.kind == "text" or actions.numel() == 0:
        return
    if described.kind == "discrete":
        if actions.is_floating_point():
            raise ValueError(f"Discrete actions are whole numbers, got {actions.dtype}.")
        low, high = int(actions.min()), int(actions.max())
        if low < 0 or high >= described.num_actions:
            raise ValueError(f"Discrete actions are 0 to {described.num_actions - 1}, got {low} to {high}.")
        return
    flat = actions.float().flatten(0, -2)
    for index, (low, high) in enumerate(zip(described.low, described.high, strict=True)):
        margin = _OUTSIDE * (high - low)
        least, most = float(flat[:, index].min()), float(flat[:, index].max())
        if not (low - margin <= least and most <= high + margin):  # NaN too
            raise ValueError(
                f"Actions: coordinate {index} goes from {low} to {high}, got {least:.6g} to {most:.6g}; which unit?"
            )


def action_shape(described, second: str = "H") -> str:
    """How a tensor of actions looks, for messages; `second` names the axis of time."""
    inner = {"discrete": "", "vector": f", {getattr(described, 'dim', '')}"}
    inner["text"] = f", {getattr(described, 'max_length', '')}"
    return f"(B, {second}{inner[described.kind]})"


def has_action_shape(described, actions: Tensor) -> bool:
    """Whether actions are `(B, T)`, or `(B, T, n)` with the `n` of a vector or text action."""
    if described.kind == "discrete":
        return actions.dim() == 2
    return actions.dim() == 3 and actions.shape[-1] == (
        described.dim if described.kind == "vector" else described.max_length
    )
