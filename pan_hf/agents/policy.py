"""A policy: a small network that reads a belief and acts at once, as learned in imagination or from cached plans.

It is plain PyTorch. The names of its weights are those of Stable-Baselines3's `ActorCriticPolicy`, so what was trained
there is read here, and the other way round; a folder of it holds `policy.safetensors` and `policy.json`, no pickle.

Shapes: N = rows, D = numbers of a belief, see `state_features`; K = choices, or numbers of an action.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.plan import MOST_CANDIDATES, Candidate, Contradicted, Plan, check_numbers, check_one_row
from pan_hf.envs.state_features import StateFeatures
from pan_hf.extras import extra
from pan_hf.features import feature_class
from pan_hf.files import finish_writing, read_json, whole_folder
from pan_hf.hub import on_disk
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, truth, whole

if TYPE_CHECKING:
    from gymnasium import spaces

    from pan_hf.modeling import Belief, PanModel

MOST_CHOICES = 4096
"""Combinations of discrete parts up to which they are one choice; beyond it each part is chosen by itself."""

TOLERANCE = 0.1
"""How far numbers in [-1, 1] may be from one another to be the same for a policy: a twentieth of the range."""

CONFIDENCE = 0.9
"""Probability of what a policy would do from which on it is followed, unless another is asked for."""

TRIED_ANYWAY = 0.25  # of a prior, which all choices share
FORBIDDEN = -1e8  # logit of a choice that is not allowed
WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"


class FlatActions:
    """The actions of a world as a policy gives them: one of K choices, or K numbers.

    Where all parts are discrete, every combination of their choices is one choice. Elsewhere a number in [-1, 1]
    stands for each coordinate of a vector, scaled to its bounds, and for each choice of a discrete part, the largest
    of which is taken.

    Args:
        config: of a world: `actions` by name, or one `action`.

    Raises:
        ValueError: actions that are said.
    """

    def __init__(self, config: Any):
        self.parts = ActionParts(config)
        if said := [name for name, part in self.parts.parts.items() if feature_class(part.kind).is_text]:
            raise ValueError(f"A policy gives choices and numbers; the actions {said} of this world are said. Plan.")
        self.is_discrete = self.parts.is_discrete and self.parts.num_choices <= MOST_CHOICES
        self._counts = {name: _numbers_of(part) for name, part in self.parts.parts.items()}

    @property
    def size(self) -> int:
        """K."""
        return self.parts.num_choices if self.is_discrete else sum(self._counts.values())

    @property
    def space(self) -> spaces.Space:
        """The gymnasium space of what the policy gives."""
        with extra("envs", "A space"):
            from gymnasium.spaces import Box, Discrete
        return Discrete(self.size) if self.is_discrete else Box(-1.0, 1.0, (self.size,))

    def to_world(self, flat: Tensor) -> Tensor | Actions:
        """Choices `(N,)`, or numbers `(N, K)`, as the world takes them."""
        if self.is_discrete:
            return self.parts.of_numbers(flat.long())
        columns = dict(zip(self._counts, flat.split(list(self._counts.values()), -1), strict=True))
        return self.parts.join({name: self._of_numbers(name, numbers) for name, numbers in columns.items()})

    def _of_numbers(self, name: str, numbers: Tensor) -> Tensor:
        part = self.parts.parts[name]
        if feature_class(part.kind).is_discrete:
            return numbers.argmax(-1)
        low, high = part.bounds(numbers.device)
        return low + (numbers.clamp(-1, 1) + 1) / 2 * (high - low)

    def of_world(self, actions: Tensor | Actions) -> Tensor:
        """The inverse of `to_world`: choices `(N,)`, or numbers `(N, K)`; of a discrete part, 1 stands for its choice
        and -1 for the others."""
        if self.is_discrete:
            return self.parts.numbers(actions)
        by_part = self.parts.split(actions)
        return torch.cat([self._as_numbers(name, by_part[name]) for name in self._counts], -1)

    def _as_numbers(self, name: str, actions: Tensor) -> Tensor:
        part = self.parts.parts[name]
        if feature_class(part.kind).is_discrete:
            return 2.0 * nn.functional.one_hot(actions.long(), self._counts[name]) - 1
        low, high = part.bounds(actions.device)
        return 2 * (actions - low) / (high - low) - 1

    def allowed(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        """Which choices, or numbers that stand for choices, masks by part allow, bool `(K,)`; None without a mask."""
        if not masks:
            return None
        if self.is_discrete:
            return self.parts.allows(masks, self.parts.of_numbers(torch.arange(self.size)))
        parts = [masks.get(name, torch.ones(count, dtype=torch.bool)) for name, count in self._counts.items()]
        return torch.cat(parts)


def _numbers_of(part: Any) -> int:
    return part.num_actions if feature_class(part.kind).is_discrete else math.prod(part.shape)


class ActorCritic(nn.Module):
    """Two perceptrons: what to do, and what it is worth. Submodules are named as in Stable-Baselines3.

    Args:
        num_inputs (`int`): D.
        hidden (`Sequence[int]`): widths of the layers between.
        num_outputs (`int`): K.
        is_discrete (`bool`): choices; else the means of Gaussians, with one spread for all beliefs.
        mask (`slice`, *optional*): inputs that say, above 0, which choices are allowed.
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_outputs: int, is_discrete: bool, mask=None):
        super().__init__()
        self.hidden, self.is_discrete, self.mask = list(hidden), is_discrete, mask
        self.mlp_extractor = nn.ModuleDict(
            {name: nn.Sequential(*perceptron(num_inputs, hidden, nn.Tanh)) for name in ("policy_net", "value_net")}
        )
        self.action_net, self.value_net = nn.Linear(hidden[-1], num_outputs), nn.Linear(hidden[-1], 1)
        if not is_discrete:
            self.log_std = nn.Parameter(torch.zeros(num_outputs))

    def outputs(self, x: Tensor) -> Tensor:
        """Logits of choices, or means, `(N, K)`. Args: x `(N, D)`."""
        outputs = self.action_net(self.mlp_extractor["policy_net"](x))
        return outputs if self.mask is None else outputs.masked_fill(x[:, self.mask] <= 0, FORBIDDEN)

    def values(self, x: Tensor) -> Tensor:
        """Values `(N,)`."""
        return self.value_net(self.mlp_extractor["value_net"](x)).squeeze(-1)


def perceptron(num_inputs: int, hidden: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    """Layers of these widths, without the last one."""
    layers: list[nn.Module] = []
    for before, after in zip([num_inputs, *hidden], hidden, strict=False):
        layers += [nn.Linear(before, after), activation()]
    return layers


def mask_of(features: StateFeatures, flat: FlatActions) -> slice | None:
    """Where a belief says which choices are allowed; None where it does not."""
    is_told = flat.is_discrete and flat.parts.predicts_mask(features.model.config)
    return features.slice_of(MASK) if is_told else None


class Policy:
    """A trained policy of one world model.

    Args:
        model ([`PanModel`]): whose beliefs it reads.
        network ([`ActorCritic`]): on any device; it goes to the model's.
        features ([`StateFeatures`]), flat ([`FlatActions`]): of the model.
        about (`Mapping`, *optional*): what else `policy.json` says, as how it was trained.
    """

    def __init__(self, model: PanModel, network: ActorCritic, features: StateFeatures, flat: FlatActions, about=None):
        self.model, self.features, self.flat, self.about = model, features, flat, dict(about or {})
        self.network = network.to(model.device).eval()

    # ---- acting

    @torch.no_grad()
    def act(
        self, belief: Belief, mask: Any = None, sampled: bool = False, generator: torch.Generator | None = None
    ) -> Tensor | Actions:
        """An action for each row, as the model takes them.

        Args:
            belief: of N rows.
            mask (*optional*): which actions are allowed now, in all rows; as `PanAgent.act` takes it.
            sampled (`bool`): draw it; the likeliest, or the mean, otherwise.
            generator (`torch.Generator`, *optional*): of draws, on the CPU.

        Raises:
            ValueError: a mask that does not fit or allows nothing.
        """
        outputs = self._outputs(belief, mask).cpu()
        if self.flat.is_discrete:
            drawn = torch.multinomial(outputs.softmax(-1), 1, generator=generator)[:, 0] if sampled else None
            flat = outputs.argmax(-1) if drawn is None else drawn
        else:
            noise = torch.randn(outputs.shape, generator=generator) if sampled else torch.zeros(())
            flat = outputs + noise * self.network.log_std.cpu().exp()
        return self.flat.to_world(flat.to(self.model.device))

    def _outputs(self, belief: Belief, mask: Any) -> Tensor:
        allowed = self.flat.allowed(self.flat.parts.check_masks(mask))
        outputs = self.network.outputs(self.features(belief))
        # below what a belief forbids: where the two contradict each other, the world is right
        return outputs if allowed is None else outputs.masked_fill(~allowed.to(outputs.device), -torch.inf)

    @torch.no_grad()
    def probabilities(self, belief: Belief, mask: Any = None) -> Tensor:
        """Of each choice, `(N, K)`.

        Raises:
            ValueError: the world's actions are numbers.
        """
        if not self.flat.is_discrete:
            raise ValueError("A policy over numbers has no probability of a choice.")
        return self._outputs(belief, mask).softmax(-1)

    @torch.no_grad()
    def confidence(self, belief: Belief, mask: Any = None) -> Tensor:
        """How sure it is of what `act` gives, `(N,)` in [0, 1]: the probability of the choice. Of numbers, the
        probability that a draw is within `TOLERANCE` of the mean in each; a policy has one spread for all beliefs, so
        that is the same in all of them."""
        return self.sureness(self._outputs(belief, mask))

    def sureness(self, outputs: Tensor) -> Tensor:
        """`confidence`, by outputs of the network."""
        if self.flat.is_discrete:
            return outputs.softmax(-1).amax(-1)
        near = torch.erf(TOLERANCE / (self.network.log_std.detach().exp() * math.sqrt(2))).prod()
        return near.expand(len(outputs))

    def prior(self, beliefs: Belief) -> Tensor:
        """What a tree search may be guided by, `(N, K)`: its probabilities, of which a quarter is shared by all
        choices, so that those it would never take are tried as well."""
        chances = self.probabilities(beliefs)
        return (1 - TRIED_ANYWAY) * chances + TRIED_ANYWAY / self.flat.size

    @torch.no_grad()
    def values(self, belief: Belief) -> Tensor:
        """What it expects from here on, discounted, `(N,)`, in the unit of rewards."""
        return self.network.values(self.features(belief)) * self.about.get("reward_scale", 1.0)

    def candidates(self, belief: Belief, mask: Any = None) -> tuple[Candidate, ...]:
        """What it weighs in a belief of one row: its likeliest choices; nothing where it gives numbers."""
        if not self.flat.is_discrete:
            return ()
        chances = self.probabilities(belief, mask)[0]
        likeliest = chances.topk(min(MOST_CANDIDATES, len(chances))).indices.cpu()
        ways = ((self.flat.to_world(choice[None]), float(chances[choice])) for choice in likeliest)
        return tuple(Candidate(way, None, weight) for way, weight in ways)

    def check_world(self, world: Any) -> None:
        """Raises ValueError where a world takes other actions than this policy gives."""
        parts, own = ActionParts(world.config).parts, self.flat.parts.parts
        sizes = [{name: _numbers_of(part) for name, part in each.items()} for each in (parts, own)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"The policy gives actions of {sizes[1]} choices or numbers by part, this world takes {sizes[0]}; "
                "train one for it."
            )

    # ---- kept

    def description(self) -> dict[str, Any]:
        """What `policy.json` says."""
        built = {"hidden": self.network.hidden, "num_outputs": self.flat.size, "is_discrete": self.flat.is_discrete}
        inputs = {"sizes": self.features.sizes, "scales": self.features.scales}
        return {**built, **inputs, "about": self.about}

    def save(self, folder: str | Path, files: Mapping[str, str | bytes] | None = None) -> None:
        """Writes the policy, and `files` (name -> content) with it, into a folder that changes whole or not at all."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        with whole_folder(folder) as temporary:
            save_file(weights, temporary / WEIGHTS)
            (temporary / DESCRIPTION).write_text(json.dumps(self.description(), indent=1))
            for name, content in (files or {}).items():
                (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)

    @classmethod
    def load(cls, folder: str | Path, model: PanModel) -> Policy:
        """Reads a policy that `save` wrote, from its folder or Hub id, for the model that it was trained in, or one
        that has grown from it.

        Raises:
            FileNotFoundError: there is none.
            HubError: the Hub did not give it.
            ValueError: it is damaged, or of another model.
        """
        folder = on_disk(folder, only=[WEIGHTS, DESCRIPTION])
        finish_writing(folder)
        if not (folder / DESCRIPTION).is_file():
            raise FileNotFoundError(
                f"No policy in {folder}: expected {DESCRIPTION} in it; `pan imagine` and `pan distil` train one."
            )
        try:
            described = read_json(folder / DESCRIPTION)
            scales, hidden = check_scales(described["scales"]), check_hidden(described["hidden"])
            about = dict(described["about"])
            sizes, taken = dict(described["sizes"]), (described["num_outputs"], described["is_discrete"])
            weights = load_file(folder / WEIGHTS)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} is no policy, or damaged ({error!r}); train it again.") from error
        features, flat = StateFeatures(model, scales), FlatActions(model.config)
        if list(features.sizes.items()) != list(sizes.items()) or taken != (flat.size, flat.is_discrete):
            raise ValueError(
                f"The policy in {folder} reads {sizes} and gives {taken[0]} {'choices' if taken[1] else 'numbers'}; "
                f"the model says {features.sizes}, and takes {flat.size}. Take the model that it was trained in."
            )
        with torch.device("meta"):  # nothing is drawn, and no memory is taken before the weights are seen to fit
            network = ActorCritic(features.size, hidden, flat.size, flat.is_discrete, mask_of(features, flat))
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit {DESCRIPTION} beside it: {error}") from error
        return cls(model, network.float(), features, flat, about)


@dataclass(frozen=True)
class PolicyPlanner:
    """Acts by a policy, where a planner is asked for: `pan plan --planner policy?folder=runs/quickstart/policy`.

    Args:
        folder (`str`): of the policy.
        sampled (`bool`): draw its actions; the likeliest otherwise.

    Raises:
        ValueError: no folder is named, or `sampled` is neither True nor False.
    """

    folder: str = ""
    sampled: bool = False

    def __post_init__(self):
        if not self.folder or not isinstance(self.folder, str | Path):
            raise ValueError(
                f"PolicyPlanner: `folder` names a policy that `pan imagine` trained, got {self.folder!r:.60}."
            )
        check_numbers(self, truth, "sampled")
        object.__setattr__(self, "_loaded", {})  # by ids of model and configuration, which a world's wrappers share

    @torch.no_grad()
    def plan(
        self,
        world,
        belief,
        critic,
        *,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
    ) -> Plan:
        """A plan of one action. Args: critic, refuted: no use to a policy; the others as for [`Planner.plan`].

        Raises:
            FileNotFoundError: there is no policy in the folder.
            ValueError: it is of another model, a belief of more than one row, or a mask that allows nothing.
        """
        start = time.perf_counter()
        check_one_row(belief, generator)
        which = id(getattr(belief, "model", None)), id(world.config)
        loaded: dict[tuple[int, int], Policy] = vars(self)["_loaded"]
        if which not in loaded:
            loaded[which] = Policy.load(self.folder, world)
        policy = loaded[which]
        return Plan(
            actions=policy.act(belief, mask, self.sampled, generator),
            expected_return=float(policy.values(belief)[0]),
            states=None,
            parts=policy.flat.parts,
            candidates=policy.candidates(belief, mask),
            seconds=time.perf_counter() - start,
        )


def check_hidden(hidden: Sequence[int]) -> list[int]:
    """Widths of layers, at least one. Raises ValueError for anything else."""
    widths = [whole("hidden", width, 1) for width in hidden]
    if not widths:
        raise ValueError("`hidden` must name a width at least, got none.")
    return widths


def check_scales(scales: Mapping[str, float]) -> dict[str, float]:
    """Scales of [`StateFeatures`], above 0. Raises ValueError for anything else."""
    return {name: real(name, scale, 0, above=True) for name, scale in dict(scales).items()}
