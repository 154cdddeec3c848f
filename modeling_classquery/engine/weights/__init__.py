"""Published weights by name: `published:NAME`, wherever a model, a backbone or a stage-one detector is asked for.

    python -m classquery.engine.weights                     # the list
    python -m classquery.engine.weights get ava22_vit_b_v2

They are fetched once for all processes, checked, converted and kept in the cache folder of Hugging Face. Their licence
is their authors', CC BY-NC 4.0; it is shown and asked for once.
"""

import importlib

from classquery.published_classquery import PREFIX, is_published


# Loaded when they are used: what reads files of weights takes torch.
_LAZY = {
    "accept_licence": "licence",
    "describe_zoo": "listing",
    "detector_folder": "converting",
    "load_zoo": "zoo",
    "weights_file": "converting",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "PREFIX",
    "accept_licence",
    "describe_zoo",
    "detector_folder",
    "is_published",
    "load_zoo",
    "weights_file",
]
