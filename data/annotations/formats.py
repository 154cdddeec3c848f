"""The formats of annotations that are found by their content; each has a file of its own."""

from collections import defaultdict
from collections.abc import Sequence

from classquery.data.annotations.ava_kinetics import AVA_KINETICS
from classquery.data.annotations.coco_vid import COCO_VID
from classquery.data.annotations.cvat import CVAT
from classquery.data.annotations.entries import Content, Context, Format, Source
from classquery.data.annotations.fiftyone import FIFTYONE
from classquery.data.annotations.json_lines import JSON_LINES
from classquery.data.annotations.kpf import KPF
from classquery.data.annotations.label_studio import LABEL_STUDIO
from classquery.data.annotations.mammalps import MAMMALPS
from classquery.data.annotations.plain_csv import CSV
from classquery.data.annotations.road import ROAD
from classquery.data.annotations.schema import AnnotationError, ProblemCollector, parsing, shorten
from classquery.data.annotations.vatic import VATIC
from classquery.data.annotations.via3 import VIA3


FORMATS: tuple[Format, ...] = (
    CSV,
    JSON_LINES,
    CVAT,
    VIA3,
    LABEL_STUDIO,
    FIFTYONE,
    COCO_VID,
    KPF,
    ROAD,
    VATIC,
    MAMMALPS,
    AVA_KINETICS,
)


def read_annotations(sources: Sequence[Source], context: Context) -> tuple[Format, Content]:
    """Find out which format some files of one split have, and read them.

    Returns:
        The format, and what the files say; files of no format are counted as ignored.

    Raises:
        AnnotationError: If no file is of a known format, several formats are mixed or fit one file, or the reader of
            the format refuses a file as a whole.
    """
    found, unknown = _sniff(sources, context.problems)
    if len(found) > 1:
        examples = "; ".join(f"{fmt.title}: {_names(files)}" for fmt, files in found.items())
        raise AnnotationError(f"more than one format in one split, keep one of them there: {examples}")
    if not found:
        for source in unknown:
            _refuse_damaged(source)
        known = ", ".join(fmt.name for fmt in FORMATS)
        raise AnnotationError(f"no format of annotations that is known ({known}): {_names(unknown)}")
    ((fmt, files),) = found.items()
    with parsing(_names(files), f"it is not as {fmt.title} is written: export it again, or report the format"):
        content = fmt.read(files, context)
    left = [source for source in unknown if not any(source.path.match(pattern) for pattern in fmt.companions)]
    if left:
        content.ignored[f"files of no known format ({_names(left)})"] += len(left)
    return fmt, content


def _sniff(sources: Sequence[Source], problems: ProblemCollector) -> tuple[dict[Format, list[Source]], list[Source]]:
    """Return the files of each format, and those of none."""
    found: dict[Format, list[Source]] = defaultdict(list)
    unknown = []
    for source in sources:
        fitting = [fmt for fmt in FORMATS if fmt.sniff(source)]
        if len(fitting) > 1:
            with problems.at(source.place()):
                raise AnnotationError(f"could be {' or '.join(fmt.title for fmt in fitting)}: keep one in a file")
        elif fitting:
            found[fitting[0]].append(source)
        else:
            unknown.append(source)
    if not found:
        # What is nearly right is for the reader to explain.
        for source in unknown:
            for fmt in FORMATS:
                if source.path.suffix.lower() in fmt.suffixes:
                    found[fmt].append(source)
        unknown = [source for source in unknown if not any(source in files for files in found.values())]
    return dict(found), unknown


def _refuse_damaged(source: Source) -> None:
    """Say what is wrong with a file of no format where it is the file: empty, no text, or JSON that is cut off.

    Raises:
        AnnotationError: If it is.
    """
    if not source.head.strip():
        raise AnnotationError(f"{source.place()} is empty: export it again")
    if "\x00" in source.head:
        source.text()
    if source.path.suffix.lower() == ".json":
        # Raises where the document is none.
        _ = source.document


def _names(sources: Sequence[Source]) -> str:
    return shorten([source.name or source.path.name for source in sources])
