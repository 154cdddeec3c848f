"""Watching a run: curves of the loss terms, and errors and hints that say what is wrong and where."""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from classquery.loss_classquery import NotFiniteError, read_together


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

    Losses and gradients on a GPU are looked at all together, in `read`: every look waits for the GPU. Those on the CPU
    are looked at as they come.

    Args:
        explosion_factor: A loss more than this many times the mean of the last passes stops the run.
    """

    def __init__(self, explosion_factor: float = math.inf):
        self.explosion_factor = explosion_factor
        self.num_skipped = 0  # Clips that could not be read, on this process.
        self._labels, self._has_seen_actor, self._num_updates = [], False, 0
        self._recent = deque(maxlen=RECENT_PASSES)
        self._sums, self._num_passes = defaultdict(float), 0
        # What is still to be looked at: how, the names of the clips, and the values.
        self._unread: list[tuple[Callable[[str, list[float]], None], str, torch.Tensor]] = []

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
    def matching(self, labels: Iterable[dict[str, Any]]) -> Iterator[None]:
        """Name the clips whose predictions cannot be matched.

        Raises:
            DivergenceError: If they are not finite.
        """
        try:
            yield
        except NotFiniteError as error:
            raise DivergenceError(f"{error}; clips: {_clip_ids(labels)}") from error

    def add(self, labels: Iterable[dict[str, Any]], loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """Take in the loss of a pass.

        Raises:
            DivergenceError: As of `read`.
        """
        values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())]).float()
        self._look_later(partial(self._check_loss, tuple(terms)), _clip_ids(labels), values)
        self._num_passes += 1
        for name, term in terms.items():
            self._sums[_curve(name)] += term.detach()

    def check_gradient(self, norm: torch.Tensor | float) -> None:
        """Take in the norm of the gradient of an update.

        Raises:
            DivergenceError: As of `read`.
        """
        norm = torch.as_tensor(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._look_later(self._check_norm, _clip_ids(self._labels), norm.detach().float().reshape(1))

    def read(self, *others: torch.Tensor) -> list[torch.Tensor]:
        """Look at what has come in, with one read of the device, and read others on the way.

        Raises:
            DivergenceError: If a loss or the norm of a gradient is not finite, or a loss explodes.
        """
        unread, self._unread = self._unread, []
        values = read_together([*(values for _, _, values in unread), *others])
        for (check, clips, _), found in zip(unread, values, strict=False):
            check(clips, found.tolist())
        return values[len(unread) :]

    def pop_means(
        self, over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda mean: mean
    ) -> dict[str, float]:
        """Mean of each curve over the passes since the last call: last layer's terms, and sums over the others.

        Args:
            over_processes: Takes the mean of a tensor over all processes.

        Returns:
            The means, and as `skipped_clips` how many could not be read so far on all processes on average, if any.

        Raises:
            DivergenceError: As of `read`.
        """
        if not self._sums:
            return {}
        means = torch.stack([total / self._num_passes for total in self._sums.values()])
        skipped = means.new_full((1,), self.num_skipped)
        (values,) = self.read(over_processes(torch.cat((means, skipped))))
        names = [*self._sums, "skipped_clips"]
        self._sums.clear()
        self._num_passes = 0
        return {name: value for name, value in zip(names, values.tolist(), strict=True) if value or name in names[:-1]}

    def _look_later(self, check: Callable, clips: str, values: torch.Tensor) -> None:
        self._unread.append((check, clips, values))
        if values.device.type == "cpu":
            self.read()

    def _check_loss(self, names: Sequence[str], clips: str, values: list[float]) -> None:
        loss, *terms = values
        usual = np.mean(self._recent) if len(self._recent) >= ENOUGH_PASSES else math.inf
        if not math.isfinite(loss) or loss > self.explosion_factor * usual:
            before = "" if math.isinf(usual) else f" after a mean of {usual:.4g} over the last passes"
            listed = ", ".join(f"{name} {term:.4g}" for name, term in zip(names, terms, strict=True))
            raise DivergenceError(
                f"the loss is {loss:.4g}{before} ({listed}): training diverges, try a lower learning rate, or look "
                f"at the clips: {clips}"
            )
        self._recent.append(loss)

    def _check_norm(self, clips: str, values: list[float]) -> None:
        if not math.isfinite(values[0]):
            raise DivergenceError(
                f"the norm of the gradient is {values[0]} after finite losses: training diverges, try a lower "
                f"learning rate, or look at the clips: {clips}"
            )


def _curve(term: str) -> str:
    """Name of the curve a loss term is drawn in: `loss_class_0` and the like together are `loss_class_auxiliary`."""
    name, _, layer = term.rpartition("_")
    return f"{name}_auxiliary" if layer.isdigit() else term


def _clip_ids(labels: Iterable[dict[str, Any]]) -> str:
    return ", ".join(label["clip_id"] for label in labels)
