"""Names that are imported when they are asked for are there for whoever asks, and no others."""

import importlib
import pickle

import pytest


PACKAGES = [
    "classquery",
    "classquery.configuration",
    "classquery.data",
    "classquery.data.metrics",
    *(f"classquery.engine.{name}" for name in ("demo", "export", "sharing", "weights")),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_exports_is_there_and_listed(package):
    module = importlib.import_module(package)

    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_what_was_asked_for_is_what_its_module_has_and_can_be_pickled():
    package = importlib.import_module("classquery")
    module = importlib.import_module("classquery.configuration_classquery")

    assert package.ClassQueryConfig is module.ClassQueryConfig
    assert pickle.loads(pickle.dumps(package.ClassQueryConfig)) is module.ClassQueryConfig
