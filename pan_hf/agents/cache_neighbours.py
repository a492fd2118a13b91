"""The nearest cached states: a NumPy matrix, and above `SCANNED` states an index of faiss where it is installed.

States under one constant text are compared with one another only. A distance is a share of the typical one between
states of the same text (the median over random pairs), so that one radius means the same in every world.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pan_hf.agents.cache_keys import FEATURES
from pan_hf.agents.cache_store import CacheStore
from pan_hf.extras import extra

SCANNED = 50_000  # states up to which all are scanned
_PAIRS = 1000  # pairs of states whose distances are taken for typical
_PROBED = 0.04  # share of faiss' lists that are looked through


class _Matrix:
    """The states under one text."""

    def __init__(self, features: np.ndarray, nodes: list[bytes]):
        self.nodes = nodes
        rng = np.random.default_rng(0)
        one, other = rng.integers(0, len(nodes), (2, _PAIRS))
        distances = np.linalg.norm(features[one] - features[other], axis=1)
        apart = distances[distances > 0]
        self.typical = float(np.median(apart)) if len(apart) else 1.0
        self.features, self.squares = features, np.einsum("nd,nd->n", features, features)
        self.index = _faiss_index(features) if len(nodes) > SCANNED else None

    def nearest(self, query: np.ndarray, count: int) -> list[tuple[bytes, float]]:
        count = min(count, len(self.nodes))
        if self.index is not None:
            distances, rows = (found[0] for found in self.index.search(query[None], count))
            found = [
                (row, max(distance, 0.0) ** 0.5) for row, distance in zip(rows, distances, strict=True) if row >= 0
            ]
        else:
            squared = self.squares - 2 * (self.features @ query) + query @ query
            rows = np.argpartition(squared, count - 1)[:count]
            found = [(row, max(float(squared[row]), 0.0) ** 0.5) for row in rows]
        ranked = sorted(found, key=lambda pair: pair[1])
        return [(self.nodes[row], float(distance) / self.typical) for row, distance in ranked]


def _faiss_index(features: np.ndarray) -> Any:
    """An index of inverted lists; None, with a word about it, where faiss is not installed."""
    try:
        with extra("cache", f"Finding neighbours among more than {SCANNED} cached states without a scan of all"):
            import faiss
    except ImportError as error:
        warnings.warn(f"{error}. Until then all {len(features)} are scanned.", stacklevel=5)
        return None
    num_lists = int(4 * len(features) ** 0.5)
    index = faiss.index_factory(FEATURES, f"IVF{num_lists},Flat")
    sample = np.random.default_rng(0).permutation(len(features))[: 40 * num_lists]
    index.train(features[sample])
    index.add(features)
    index.nprobe = max(8, round(_PROBED * num_lists))
    return index


class Neighbours:
    """Finds the cached states of one space that are near to a belief.

    Args:
        store ([`CacheStore`]), space (`int`): whose states; they are read once, when this is made.
    """

    def __init__(self, store: CacheStore, space: int):
        features, self._nodes, texts = store.features(space)
        by_text: dict[bytes, list[int]] = {}
        for row, text in enumerate(texts):
            by_text.setdefault(text, []).append(row)
        self._matrices = {
            text: _Matrix(features[rows], [self._nodes[row] for row in rows]) for text, rows in by_text.items()
        }

    def __len__(self) -> int:
        return len(self._nodes)

    def nearest(self, text: bytes, features: np.ndarray, count: int = 8) -> list[tuple[bytes, float]]:
        """The nearest states under the same text: node, and distance as a share of the typical one."""
        matrix = self._matrices.get(text)
        return [] if matrix is None else matrix.nearest(features.astype(np.float32), count)
