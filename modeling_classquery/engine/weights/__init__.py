"""Published weights by name: `published:NAME`, wherever a model, a backbone or a stage-one detector is asked for.

    python -m classquery.engine.weights                     # the list
    python -m classquery.engine.weights get ava22_vit_b_v2

They are fetched once for all processes, checked, converted and kept in the cache folder of Hugging Face. Their licence
is their authors', CC BY-NC 4.0; it is shown and asked for once.
"""

from typing import TYPE_CHECKING

from classquery._lazy import lazily
from classquery.published_classquery import PREFIX, is_published


# Loaded when they are used: what reads files of weights takes torch.
if TYPE_CHECKING:
    from classquery.engine.weights.converting import detector_folder, weights_file
    from classquery.engine.weights.licence import accept_licence
    from classquery.engine.weights.listing import describe_zoo
    from classquery.engine.weights.zoo import load_zoo


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "PREFIX",
    "accept_licence",
    "describe_zoo",
    "detector_folder",
    "is_published",
    "load_zoo",
    "weights_file",
]
