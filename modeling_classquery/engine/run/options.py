"""All options of a run together."""

from typing import NamedTuple

from transformers import TrainingArguments

from classquery.configuration import DataArguments, Recipe
from classquery.configuration.arguments import OptimizationArguments
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.run.arguments import ModelArguments


class Options(NamedTuple):
    """All that a run goes by."""

    model: ModelArguments
    data: DataArguments
    optimization: OptimizationArguments
    prediction: PredictionArguments
    training: TrainingArguments
    recipe: Recipe
    reason: str = ""  # Why that recipe, if nobody asked for it.
