"""From the name of published weights to what can be loaded: a folder with a detector, or a file of weights."""

import logging
from collections.abc import Collection
from pathlib import Path

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.checkpoint_files_classquery import CheckpointError
from classquery.configuration.recipes import load_recipe
from classquery.conversion_classquery import load_checkpoint, save_detector
from classquery.data.hints import closest
from classquery.engine.weights.fetching import alone, fetch
from classquery.engine.weights.zoo import PublishedWeights, load_zoo
from classquery.published_classquery import PREFIX


logger = logging.getLogger(__name__)


def detector_folder(name: str) -> Path:
    """Folder of a published detector with its processor, as `save_pretrained` writes them.

    The first time, the file is fetched, checked and converted; once for all processes.

    Args:
        name: One of those of `load_zoo`, with or without `published:`.

    Raises:
        CheckpointError: If there is no detector of this name, its licence is not accepted, or its file cannot be had
            or does not hold it.
    """
    weights = find_weights(name, ("detector",))
    if not weights.folder.exists():
        with alone(weights.folder):
            if not weights.folder.exists():
                _convert(weights, fetch(weights))
    return weights.folder


def _convert(weights: PublishedWeights, path: Path) -> None:
    logger.warning("converting %s, once", path)
    recipe = load_recipe(weights.recipe)
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**recipe.model))
    load_checkpoint(model, path)
    save_detector(model, ClassQueryVideoProcessor(**recipe.processor), weights.folder)


def weights_file(name: str, kinds: Collection[str]) -> Path:
    """File of published weights, for what loads a backbone or a detector of stage one.

    Args:
        name: One of those of `load_zoo`, with or without `published:`.
        kinds: Kinds of weights that can be used.

    Raises:
        CheckpointError: As from [`detector_folder`].
    """
    return fetch(find_weights(name, kinds))


def find_weights(name: str, kinds: Collection[str] = ("detector", "transformer", "backbone")) -> PublishedWeights:
    """Look up published weights.

    Raises:
        CheckpointError: If there are none of this name, or they are of another kind.
    """
    name = name.removeprefix(PREFIX)
    zoo = load_zoo()
    suitable = [weights.name for weights in zoo.values() if weights.kind in kinds]
    if name not in zoo:
        raise CheckpointError(
            f"no weights are published as {name[:200]!r}{closest(name, suitable) or ';'} "
            f"there are: {', '.join(suitable)}"
        )
    if zoo[name].kind not in kinds:
        raise CheckpointError(
            f"published weights {name} are a {zoo[name].kind}, and here a {' or '.join(kinds)} is needed: "
            f"{', '.join(suitable)}"
        )
    return zoo[name]
