"""Detection in a video file with everything around it: progress, the JSON file and the annotated video."""

from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from classquery.data.clip_reader import ClipReader
from classquery.engine.detection import detect
from classquery.engine.drawing import draw_keyframe, write_annotated_video
from classquery.engine.results import FrameDetections
from classquery.engine.writing import write_detections
from classquery.modeling_classquery import ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


def predict_video(
    path: str | Path,
    folder: str | Path,
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    *,
    attention_label: str | None = None,
    **detection_options,
) -> Counter[str]:
    """Detect actions in a video and write `detections.json`, `annotated.mp4` and a still from it, `preview.png`.

    Args:
        path: The video file.
        folder: Where to write; made if it is missing. Files there are replaced only by finished ones.
        model: The detector.
        processor: The processor that belongs to it.
        attention_label: Name of a class whose attention is laid over the annotated video.
        **detection_options: Thresholds and rates of `detect`.

    Returns:
        How often each action was detected, over all keyframes and actors.

    Raises:
        ValueError: If the class is unknown or an option out of range.
        VideoReadError: If the video cannot be read; nothing is written then.
    """
    info = ClipReader().info(path)
    attention = [] if attention_label is None else [attention_label]
    detections = detect(path, model, processor, attention=attention, **detection_options)
    keyframes = list(tqdm(detections, desc=f"Detecting in {Path(path).name}", unit="keyframe"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_detections(folder / "detections.json", info, keyframes)
    write_annotated_video(path, folder / "annotated.mp4", keyframes, attention_label=attention_label)
    clearest = max(keyframes, key=_clarity)
    image = Image.fromarray(ClipReader().read(path, [clearest.frame_index])[0])
    draw_keyframe(image, clearest, attention_label=attention_label).save(folder / "preview.png")
    return Counter(label for keyframe in keyframes for actor in keyframe.actors for label, _ in actor.actions)


def _clarity(keyframe: FrameDetections) -> float:
    """Many actors of whom even the weakest action is certain; at a cut, where shots mix, it is near one half."""
    return sum(min(score for _, score in actor.actions) - 0.5 for actor in keyframe.actors)
