"""What is used of transformers' Trainer beyond its public interface is listed, and is still like that."""

import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer

import classquery.engine.training
from classquery.engine.training.private_api import PRIVATE_ATTRIBUTES, PRIVATE_METHODS
from classquery.engine.training.trainer import ActionDetectionTrainer


MODULES = sorted(Path(classquery.engine.training.__file__).parent.glob("*.py"))


def private_names(source: str) -> set[str]:
    """Of attributes and methods that are defined, or used of `self` or `super()`."""
    return set(re.findall(r"(?:\bdef |\bself\.|\bsuper\(\)\.)(_[a-z]\w*)", source))


def test_everything_private_that_is_used_is_listed():
    used = set().union(*(private_names(path.read_text()) for path in MODULES))
    of_trainer = set(dir(Trainer)) | private_names(inspect.getsource(Trainer))

    assert used & of_trainer == PRIVATE_METHODS.keys() | PRIVATE_ATTRIBUTES.keys()


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_private_methods_are_as_they_were(name):
    parameters, why = PRIVATE_METHODS[name]

    assert tuple(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    assert why.endswith(".")


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_overriding_methods_take_what_trainer_gives(name):
    """Every one in the order of resolution, by position and by name."""
    parameters = inspect.signature(getattr(Trainer, name)).parameters.values()
    given = {p.name: None for p in parameters if p.name != "self"}
    for trainer in ActionDetectionTrainer.__mro__[:-1]:
        if name in vars(trainer):
            signature = inspect.signature(vars(trainer)[name])
            signature.bind(None, **given)
            signature.bind(None, *given)


@pytest.mark.parametrize("name", PRIVATE_ATTRIBUTES)
def test_private_attributes_are_still_used(name):
    assert f"self.{name}" in inspect.getsource(Trainer)
