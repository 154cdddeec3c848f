"""Reader of VATIC text, as Okutama-Action has it: a file for each video, a line for each box.

    track xmin ymin xmax ymax frame lost occluded generated "label" "action" "action" ...

    0 10 20 40 90 0 0 0 0 "Person" "Walking"

Boxes are pixels of the frames that were annotated; Okutama's are 3840 x 2160. Frames count from 0 (readers take the
number as it is), and lines that VATIC generated between two given boxes are there already. `lost` means that there is
no box, `occluded` that it is hidden and there. Without any action in a file, the class is the label.
"""

import re
from collections.abc import Sequence

from classquery.data.annotations.collecting import TubeCollector, as_labels, in_file, note_once, reading
from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, quote
from classquery.data.annotations.values import number, whole_number


_NUM_NUMBERS = 9
_LINE = re.compile(r'\s*(?:-?\d+(?:\.\d+)?\s+){9}".*"\s*')
_QUOTED = re.compile(r'"([^"]*)"')


def sniff_vatic(source: Source) -> bool:
    """Whether the first line that is not empty has nine numbers and a name in quotes."""
    line = source.head.lstrip().partition("\n")[0]
    return _LINE.fullmatch(line) is not None


def read_vatic(sources: Sequence[Source], context: Context) -> Content:
    """Read files that are called like their videos."""
    content = Content(box_format="pixel")
    for source in sources:
        _read(source, context, content)
    return content


def _read(source: Source, context: Context, content: Content) -> None:
    video, tubes = source.path.stem, TubeCollector(content)
    content.videos[video] = VideoClaim()
    lines = source.text().splitlines()
    have_actions = any(line.count('"') > 2 for line in lines)
    note_once(content, f"classes are the {'actions' if have_actions else 'labels'}")
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with reading(context, source.place(f"line {line_number}")):
            start, quotation, rest = line.partition('"')
            cells, names = start.split(), _QUOTED.findall(quotation + rest)
            if len(cells) != _NUM_NUMBERS or not names:
                raise AnnotationError(f'needs nine numbers and a "label", got {quote(line)}')
            frame = whole_number(cells[5], "the frame")
            if cells[6] == "1":
                content.ignored["lines of people who are lost"] += 1
                continue
            box = tuple(number(cell, "a corner of a box") for cell in cells[1:5])
            labels = as_labels(names[1:] if have_actions else names[:1])
            track = whole_number(cells[0], "the track")
            tubes.add(source.place(f"track {track}"), video, in_file(source, track), labels, frame, box)
    tubes.finish()


VATIC = Format("vatic", "VATIC text (Okutama-Action)", sniff_vatic, read_vatic)
