"""Labels of a batch as the trainer takes them: made ready by the data workers, and kept where they are needed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from classquery.loss_classquery import ActionTargets


class BatchLabels(ActionTargets):
    """Labels of a batch that stay on the CPU, where actors are matched and names belong.

    Neither a list nor a mapping: else Accelerate, Trainer and DDP would copy every tensor of every clip to the device.

    Args:
        clips: Labels of each clip, as `ClipCollator` gives them.

    Raises:
        ValueError: If they are no labels, see `ActionTargets`.
    """

    def __init__(self, clips: list[dict[str, Any]]):
        super().__init__(clips)
        self.clips = clips

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.clips)


class LabelCollator:
    """Collate with another collator, and check and flatten the labels of its batch.

    Args:
        collate: As `ClipCollator`; its `labels` are a list of dicts.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, clips: Sequence[Any]) -> dict[str, Any]:
        """Collate."""
        batch = self.collate(list(clips))
        return batch | {"labels": BatchLabels(batch["labels"])}
