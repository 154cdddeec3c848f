"""Use saved detectors in a process that has only what code from the Hub may need; run by `test_remote_code.py`.

python tests/remote_code.py FOLDER HIDDEN_MODULE...

FOLDER holds a detector in each folder `<name>/first`, and `clip.pt` or `video.mp4`. Written beside each are what it
computed, `<name>/outputs.pt`, the detector saved again, `<name>/second`, and what that one computed,
`<name>/outputs_again.pt`.
"""

import importlib.machinery
import sys
from pathlib import Path


class WithoutModules:
    """A finder that does not find some modules."""

    def __init__(self, finder, hidden: list[str]):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str):
        return getattr(self.finder, name)


def compute(folder: Path, video) -> dict:
    """Outputs of model and processor, and the detections of the pipeline."""
    import torch
    from transformers import AutoModel, AutoProcessor, AutoVideoProcessor, pipeline

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert f".{folder.name}." in type(model).__module__, type(model)
    assert type(AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)) is type(processor)
    detector = pipeline("video-action-detection", model=str(folder), trust_remote_code=True)
    inputs = processor(torch.arange(4 * 3 * 40 * 48).view(4, 3, 40, 48).to(torch.uint8))
    with torch.no_grad():
        outputs = model(**inputs)
    return {
        "pixel_values": inputs["pixel_values"],
        **{name: outputs[name] for name in ("logits", "scores", "pred_boxes", "actor_logits")},
        "detections": detector(video, threshold=0, actor_threshold=0, top_k=2),
    }


def main() -> None:
    root, hidden = Path(sys.argv[1]), sys.argv[2:]
    sys.meta_path[:] = [WithoutModules(finder, hidden) for finder in sys.meta_path]
    import torch
    from transformers import AutoModel, AutoProcessor

    torch.set_num_threads(1)
    video = root / "video.mp4" if (root / "video.mp4").exists() else torch.load(root / "clip.pt", weights_only=True)
    for first in sorted(root.glob("*/first")):
        second = first.parent / "second"
        torch.save(compute(first, video), first.parent / "outputs.pt")
        AutoModel.from_pretrained(first, trust_remote_code=True).save_pretrained(second)
        AutoProcessor.from_pretrained(first, trust_remote_code=True).save_pretrained(second)
        torch.save(compute(second, video), first.parent / "outputs_again.pt")
    assert not set(hidden) & set(sys.modules), set(hidden) & set(sys.modules)


if __name__ == "__main__":
    main()
