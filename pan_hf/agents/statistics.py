"""What an agent did in an episode, counted."""

from dataclasses import dataclass, field


@dataclass
class AgentStatistics:
    """What an agent did since it was reset.

    Args:
        decisions (`int`): calls of `act`.
        replans (`int`): plans made, the first included.
        recalled (`int`): actions taken from the simulation cache instead; `recalled_by` (`dict`): how many at which
            of its levels.
        by_policy (`int`): actions that the policy took instead.
        repairs (`int`): surprises after which the rest of the plan still reached the goal.
        followed (`int`): states for which the plan had another branch, see [`Strategy`].
        surprises (`int`): observations whose codes differ from the predicted ones.
        clipped (`int`): vectors that lay outside the range the model knows, and were clipped to it.
        num_simulated (`int`), num_calls (`int`): imagined steps, and `simulate` calls that made them.
        times (`list[float]`): seconds of wall time inside each `act`; `seconds` (`float`): their sum.
        claims (`int`), refused (`int`): see `num_claims` and `num_refused` of [`Plan`].
        promised (`int`), broken (`int`): goals that the agent's last actions of plans were to reach, and those that it
            then did not see, see [`PanAgent.keeps_promise`].
    """

    decisions: int = 0
    replans: int = 0
    recalled: int = 0
    by_policy: int = 0
    repairs: int = 0
    followed: int = 0
    surprises: int = 0
    clipped: int = 0
    num_simulated: int = 0
    num_calls: int = 0
    times: list[float] = field(default_factory=list)
    recalled_by: dict[str, int] = field(default_factory=dict)
    claims: int = 0
    refused: int = 0
    promised: int = 0
    broken: int = 0

    @property
    def plans(self) -> int:
        """Plans that were made, mended or recalled."""
        return self.replans + self.repairs + self.recalled + self.by_policy

    @property
    def seconds(self) -> float:
        return sum(self.times)

    @property
    def seconds_per_decision(self) -> float:
        return self.seconds / max(1, self.decisions)

    @property
    def simulated_per_decision(self) -> float:
        return self.num_simulated / max(1, self.decisions)
