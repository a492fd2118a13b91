"""Where imagined episodes begin: at recorded steps of training episodes, with the steps before them that the model
sees."""

from __future__ import annotations

import numpy as np
import torch

from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.modeling import Belief, PanModel
from pan_hf.tokenization import PanProcessor


class RecordedStarts:
    """Beliefs at recorded steps.

    Every step behind which another is recorded is as likely, the first of an episode too: of what a model of several
    steps sees, it holds what there is.

    Args:
        trajectories ([`Trajectories`]): a split of recorded episodes.
        processor ([`PanProcessor`]), model ([`PanModel`]): of one checkpoint.
        environment (`str`, *optional*): id, to begin in its episodes only.

    Raises:
        ValueError: the recording lacks a sense of the model, or has no episode of `environment`.
    """

    def __init__(
        self, trajectories: Trajectories, processor: PanProcessor, model: PanModel, environment: str | None = None
    ):
        self.trajectories, self.processor, self.model = trajectories, processor, model
        self.rows = trajectories.windows(1, environment)
        earlier = self.rows - trajectories.episode_starts[trajectories.episode[self.rows]]
        self._leads = np.minimum(earlier, model.config.context_steps - 1)  # steps before each row that are seen
        self._readers = {
            int(lead): WindowReader(trajectories, processor, model, context=int(lead) + 1)
            for lead in np.unique(self._leads)
        }

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, count: int, rng: np.random.Generator) -> Belief:
        """Beliefs at so many steps, drawn with replacement."""
        return self.beliefs(rng.integers(len(self.rows), size=count))

    def beliefs(self, numbers: np.ndarray) -> Belief:
        """Beliefs at some of the steps, by number `(n,)` from 0 to `len(starts) - 1`, in the order given."""
        parts, order = [], []
        for lead in np.unique(self._leads[numbers]):
            index = np.flatnonzero(self._leads[numbers] == lead)
            reader = self._readers[int(lead)]
            parts.append(reader.perceive(reader.batch(self.rows[numbers[index]], 1)))
            order.append(index)
        if len(parts) == 1:
            return parts[0]
        return Belief.cat(parts).select(torch.as_tensor(np.concatenate(order).argsort()))
