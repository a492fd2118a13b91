"""What the data in `tests/data/old` say when they are used: numbers that must be equal, and numbers that must be near.

Only torch, numpy and Transformers are imported, so that a process without pan_hf can ask as well:

    python -P tests/old_data.py tests/data/old/model
"""

import hashlib
import json
import sys

import numpy as np
import torch

STEPS = 3  # that are imagined
TEXTS = ["go <camera.0:3> to", "take 250 to the corner"]
ACTIONS = {
    "model": np.array([[4, 1, 3, 2]]),
    "vector": np.array([[[0.5, -0.25], [1.0, 0.0], [-1.0, 0.75], [0.1, 0.2]]], np.float32),
}


def observation(senses, steps: int, first: int = 0) -> dict:
    """What a checkpoint's senses are shown, one row: frames, places and words without anything random in them."""
    frames = np.stack([np.arange(16 * 16 * 3) * (7 + first + step) % 251 for step in range(steps)])
    shown = {
        "camera": frames.astype(np.uint8).reshape(1, steps, 16, 16, 3),
        "place": np.array([[[0.3 * (first + step) % 3, 2.5] for step in range(steps)]], np.float32),
        "heard": [["far" if step % 2 else "near the goal" for step in range(first, first + steps)]],
        "mission": "take 250 to the corner",
    }
    return {name: value for name, value in shown.items() if name in senses}


def digest(tensor) -> str:
    """Of type, shape and bytes."""
    array = np.ascontiguousarray(tensor)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()[:16]


def numbers(tensor) -> list[float]:
    """A few of a tensor's numbers, and all of them in their mean and mean square."""
    flat = tensor.detach().double().flatten()
    return [round(float(value), 6) for value in (*flat[:: max(1, len(flat) // 8)], flat.mean(), flat.square().mean())]


@torch.no_grad()
def ask(name: str, model, processor) -> dict[str, dict]:
    """What a model and its processor say, as JSON can hold it.

    Args:
        name: a key of `ACTIONS`, which kind of action the model takes.
        model, processor: of one checkpoint.

    Returns:
        `exact`: what the processor makes of observations, codes and words of states and futures, ids of texts.
        `close`: log probabilities, rewards, pictures, logits.
    """
    senses, actions = list(model.config.senses), ACTIONS[name]
    batch = processor(observation=observation(senses, 2), action=[row[:1] for row in actions])
    belief = model.perceive(**batch)
    tensors = {**batch["observation"], "action": batch["action"]}
    exact = {f"processor.{key}": digest(tensor) for key, tensor in tensors.items()} | codes_of("belief", belief.state)
    close = {f"latents.{sense}": numbers(latents) for sense, latents in belief.state.latents.items()}
    ahead = processor(action=[row[1:] for row in actions])["action"]
    for effort in (None, "coarsest", "auto") if model.config.level0_sampling == "parallel" else (None,):
        futures = model.simulate(belief, ahead, num_rollouts=2, seed=5, effort=effort)
        exact |= codes_of(f"{effort}", futures.state)
        close |= floats_of(f"{effort}", futures)
    later = processor(observation=observation(senses, STEPS, first=2))["observation"]
    torch.manual_seed(0)
    scored = model.log_prob(belief, ahead, {sense: value for sense, value in later.items() if sense != "mission"})
    close |= {f"log_prob.{part}": numbers(getattr(scored, part)) for part in ("codes", "latents", "observation")}
    given = {"codes_in_text": True}
    ids = [processor.tokenizer(text, **given)["input_ids"] for text in TEXTS if "camera" in senses or "<" not in text]
    exact |= {"ids": ids, "vocabulary": processor.vocabulary_digest}
    logits = model(torch.tensor(ids[-1:]), **given).logits[..., :200]
    return {"exact": exact, "close": close | {"logits": numbers(logits)}}


def codes_of(what: str, state) -> dict[str, list]:
    """Codes by sense and level, and words, as lists."""
    found = {f"{what}.{sense}": ids.tolist() for sense, ids in state.text.items()}
    for sense, levels in state.codes.items():
        found |= {f"{what}.{sense}.{level}": codes.tolist() for level, codes in enumerate(levels)}
    return found


def floats_of(what: str, futures) -> dict[str, list[float]]:
    """Log probabilities, outcomes, and what is seen and felt; of pictures the mean of each channel."""
    found = {"log_prob": futures.log_prob, "reward": futures.reward, "continue": futures.continue_prob}
    latents = True if futures.switch is None else None  # with an effort, where they were predicted
    found |= {sense: futures.decode(sense, latents=latents).float() for sense in futures.codes}
    found = {key: tensor.mean((-1, -2)) / 255 if key == "camera" else tensor for key, tensor in found.items()}
    return {f"{what}.{key}": numbers(tensor) for key, tensor in found.items()}


def summary(trajectories) -> dict:
    """What a recording holds, as JSON can hold it."""
    lists = ("actions", "rewards", "dones", "truncateds", "episode_lengths")
    found = {name: getattr(trajectories, name).tolist() for name in lists}
    found |= {name: list(getattr(trajectories, name)) for name in ("tasks", "environments", "seeds", "fingerprints")}
    return found | {name: digest(values) for name, values in trajectories.observations.items()}


def main(folder: str) -> None:
    """Asks a checkpoint with the code that it ships, and prints what it said."""
    sys.modules["pan_hf"] = None  # an import of it fails
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    print(json.dumps(ask("model", model, AutoProcessor.from_pretrained(folder, trust_remote_code=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
