"""The code that a saved folder carries, so that it works where the package is not installed.

There, transformers copies the module that a class is asked for in, and what that one imports. So all classes are asked
for in one module that imports all others: whichever is loaded first brings the code of all, and what was loaded can be
saved again.
"""

import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


# Imports all that travels.
_ENTRY = "pipeline_classquery"
AUTO_MAP = {
    "AutoConfig": f"{_ENTRY}.ClassQueryConfig",
    "AutoModel": f"{_ENTRY}.ClassQueryForVideoActionDetection",
    "AutoModelForObjectDetection": f"{_ENTRY}.ClassQueryForVideoActionDetection",
    "AutoVideoProcessor": f"{_ENTRY}.ClassQueryVideoProcessor",
}
PIPELINES = {
    "video-action-detection": {
        "impl": f"{_ENTRY}.VideoActionDetectionPipeline",
        "pt": ["AutoModelForObjectDetection"],
        "type": "multimodal",
    }
}


def code_files() -> list[Path]:
    """The files that travel, from where this one is: the package, or what transformers made of a folder."""
    entry = Path(__file__).with_name(f"{_ENTRY}.py")
    return [entry, *sorted(set(map(Path, get_relative_import_files(entry))))]


class SavedWithCode:
    """For what is saved to a folder of its own: saves the code as well, in place of transformers' way.

    That would save the module of the class and what it imports, and ask for the class there.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class=None) -> None:
        """Do nothing, where transformers would turn its own way on."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Save as transformers does, and beside it the code of model, processor and pipeline.

        The folder works where the package is not installed, with `trust_remote_code=True`; where it is, the package
        goes first.
        """
        os.makedirs(save_directory, exist_ok=True)
        for path in code_files():
            shutil.copyfile(path, Path(save_directory) / path.name)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        # What is older than this is not uploaded; the code is just there.
        times = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in times.items() if name not in {path.name for path in code_files()}}


__all__ = ["AUTO_MAP", "PIPELINES", "SavedWithCode", "code_files"]
