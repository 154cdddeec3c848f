"""Which recipe a run takes if none is given."""

from typing import NamedTuple, get_args

from classquery.data.names import DatasetName


class Choice(NamedTuple):
    """A recipe, and why it was chosen: nothing to be said where it was asked for."""

    recipe: str
    reason: str = ""


def choose_recipe(recipe: str | None, dataset: str | None, model: str | None, do_train: bool) -> Choice:
    """Choose by what the command line says.

    Args:
        recipe: Name or file of a recipe, if one is given.
        dataset: Name of the data set, if one is given.
        model: The trained model, if one is given.
        do_train: Whether to train.

    Raises:
        ValueError: If it is to be trained from scratch on a data set that no recipe belongs to.
    """
    if recipe is not None:
        return Choice(recipe)
    if dataset is None or dataset.startswith("demo"):
        return Choice(dataset or "demo")
    if not do_train or dataset not in get_args(DatasetName):
        # A name that does not exist is refused with those that do when all options are read.
        return Choice("demo")
    if model is None:
        raise ValueError(
            f"--dataset {dataset[:50]} alone does not say what to train: give --model_name_or_path with a trained "
            "detector to start from (takes the recipe finetune), or --recipe for a new one (`classquery recipes` "
            "lists them)"
        )
    return Choice("finetune", f", chosen because {model} goes on with data of --dataset {dataset}")
