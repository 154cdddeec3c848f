"""Tells transformers of our classes once both are there, so that `import classquery` need not import it.

That takes seconds, and much of what this package does, as reading annotations or printing a help text, goes without.
Python asks the finders in `sys.meta_path` for each module that is imported: ours notes when one of the modules below
has been executed. A class is registered when the place for it and the class itself are there, whichever comes first.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple


class _Registration(NamedTuple):
    place: str
    """Module of transformers that is told."""
    source: str
    """Module of ours with what it is told."""
    register: Callable[[ModuleType, ModuleType], None]


def _register_configs(auto: ModuleType, ours: ModuleType) -> None:
    for config in (ours.ClassQueryConfig, ours.ClassQueryCSNConfig, ours.ClassQueryViTConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(auto: ModuleType, ours: ModuleType) -> None:
    for auto_class in (auto.AutoModel, auto.AutoModelForObjectDetection):
        auto_class.register(ours.ClassQueryConfig, ours.ClassQueryForVideoActionDetection, exist_ok=True)


def _register_processor(auto: ModuleType, ours: ModuleType) -> None:
    config = importlib.import_module("classquery.configuration_classquery").ClassQueryConfig
    auto.AutoVideoProcessor.register(config, ours.ClassQueryVideoProcessor, exist_ok=True)


def _register_pipeline(pipelines: ModuleType, ours: ModuleType) -> None:
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "video-action-detection",
        pipeline_class=ours.VideoActionDetectionPipeline,
        pt_model=importlib.import_module("transformers").AutoModelForObjectDetection,
        type="multimodal",
    )


def _find_published(hub: ModuleType, _: ModuleType) -> None:
    """Let names of published detectors stand for their folders wherever transformers looks for files of a model."""
    cached_files = hub.cached_files
    local_detector = importlib.import_module("classquery.published_classquery").local_detector

    @functools.wraps(cached_files)
    def with_published(path_or_repo_id, *args, **kwargs):
        return cached_files(local_detector(path_or_repo_id), *args, **kwargs)

    hub.cached_files = with_published


_AUTO = "transformers.models.auto"
_pending = [
    _Registration("transformers.utils.hub", __name__, _find_published),
    _Registration(f"{_AUTO}.configuration_auto", "classquery.configuration_classquery", _register_configs),
    _Registration(f"{_AUTO}.modeling_auto", "classquery.modeling_classquery", _register_models),
    _Registration(f"{_AUTO}.video_processing_auto", "classquery.video_processing_classquery", _register_processor),
    _Registration("transformers.pipelines", "classquery.pipeline_classquery", _register_pipeline),
]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself; notes when a module that matters has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(name in (pending.place, pending.source) for pending in _pending):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _executed.add(name)
                register_pending()

            spec.loader.exec_module = exec_module
        return spec


# Those whose import has ended, of which some may still be waited for by what imports them.
_executed: set[str] = set()


def register_pending() -> None:
    """Register all whose place is there; what is being imported right now comes again when that has ended."""
    for pending in list(_pending):
        if _is_there(pending.place) and pending in _pending:
            if not _is_there(pending.source):
                if pending.source in sys.modules:
                    continue
                importlib.import_module(pending.source)
            if pending in _pending:
                _pending.remove(pending)
                pending.register(sys.modules[pending.place], sys.modules[pending.source])
    if not _pending:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _is_there(name: str) -> bool:
    module = sys.modules.get(name)
    return name in _executed or (module is not None and not getattr(module.__spec__, "_initializing", False))


def install() -> None:
    """Register what can be by now, and the rest as soon as it can."""
    sys.meta_path.insert(0, _Finder())
    register_pending()
