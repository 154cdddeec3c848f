"""Watching a run: curves of the loss terms, and errors and hints that say what is wrong and where."""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from classquery.loss_classquery import NotFiniteError


logger = logging.getLogger(__name__)

# Updates without any annotated actor after which a run stops.
PATIENCE = 50
# Passes whose mean loss is what an exploding one is compared with, and how many of them it takes.
RECENT_PASSES, ENOUGH_PASSES = 100, 10


class DivergenceError(ValueError):
    """Raised when a loss or gradient is not finite, or explodes; names the clips."""


class NoActorError(ValueError):
    """Raised when a run has seen no annotated actor."""


class LossMonitor:
    """Sum up the loss terms between logs, and stop a run that cannot go well.

    Args:
        explosion_factor: A loss more than this many times the mean of the last passes stops the run.
    """

    def __init__(self, explosion_factor: float = math.inf):
        self.explosion_factor = explosion_factor
        self.num_skipped = 0  # Clips that could not be read, on this process.
        self._labels, self._has_seen_actor, self._num_updates = [], False, 0
        self._recent = deque(maxlen=RECENT_PASSES)
        self._sums, self._num_passes = defaultdict(float), 0

    def begin_update(self, batches: list[dict[str, Any]]) -> None:
        """Take note of the clips of an update, and report those that were skipped for it.

        Raises:
            NoActorError: If none of the first updates has an actor.
        """
        self._labels = [label for batch in batches for label in batch["labels"]]
        self._num_updates += 1
        skipped = [clip for label in self._labels for clip in label.get("skipped", ())]
        self.num_skipped += len(skipped)
        for clip in skipped:
            logger.warning("skipped clip %s", clip)
        self._has_seen_actor = self._has_seen_actor or any(bool(label["valid"].any()) for label in self._labels)
        if not self._has_seen_actor and self._num_updates == PATIENCE:
            raise NoActorError(
                f"no actor is annotated in any clip of the first {PATIENCE} updates, the last of them "
                f"{_clip_ids(self._labels)}: compare the names of videos and the times in the annotations with the "
                "videos"
            )

    @contextmanager
    def matching(self, labels: list[dict[str, Any]]) -> Iterator[None]:
        """Name the clips whose predictions cannot be matched.

        Raises:
            DivergenceError: If they are not finite.
        """
        try:
            yield
        except NotFiniteError as error:
            raise DivergenceError(f"{error}; clips: {_clip_ids(labels)}") from error

    def add(self, labels: list[dict[str, Any]], loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """Take in the loss of a pass.

        Raises:
            DivergenceError: If it is not finite, or explodes.
        """
        value = loss.item()
        usual = np.mean(self._recent) if len(self._recent) >= ENOUGH_PASSES else math.inf
        if not math.isfinite(value) or value > self.explosion_factor * usual:
            before = "" if math.isinf(usual) else f" after a mean of {usual:.4g} over the last passes"
            listed = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise DivergenceError(
                f"the loss is {value:.4g}{before} ({listed}): training diverges, try a lower learning rate, or look "
                f"at the clips: {_clip_ids(labels)}"
            )
        self._recent.append(value)
        self._num_passes += 1
        for name, term in terms.items():
            self._sums[_curve(name)] += term.detach()

    def check_gradient(self, norm: torch.Tensor | float) -> None:
        """Stop before the weights are spoilt.

        Raises:
            DivergenceError: If the norm of the gradient is not finite.
        """
        if not math.isfinite(norm):
            raise DivergenceError(
                f"the norm of the gradient is {float(norm)} after finite losses: training diverges, try a lower "
                f"learning rate, or look at the clips: {_clip_ids(self._labels)}"
            )

    def pop_means(self) -> dict[str, torch.Tensor]:
        """Mean of each curve over the passes since the last call: last layer's terms, and sums over the others."""
        means = {name: total / self._num_passes for name, total in self._sums.items()}
        self._sums.clear()
        self._num_passes = 0
        return means


def _curve(term: str) -> str:
    """Name of the curve a loss term is drawn in: `loss_class_0` and the like together are `loss_class_auxiliary`."""
    name, _, layer = term.rpartition("_")
    return f"{name}_auxiliary" if layer.isdigit() else term


def _clip_ids(labels: Iterable[dict[str, Any]]) -> str:
    return ", ".join(label["clip_id"] for label in labels)
