"""Reader of KPF, the YAML files of MEVA and VIRAT: three for each video, of boxes, kinds of actors and activities.

    clip_a.geom.yml          - { geom: {id1: 1, id0: 0, ts0: 10, ts1: 0.33, g0: 20 30 50 100, src: truth} }
    clip_a.types.yml         - { types: { id1: 1, cset3: { Person: 1.0 } } }
    clip_a.activities.yml    - { act: { act2: { person_sits_down: 1.0 }, id2: 1, timespan: [{tsr0: [11, 15]}],
                                  actors: [{ id1: 1, timespan: [{tsr0: [11, 15]}]}] } }

`ts0` is the frame from 0, `g0` the corners in pixels. Somebody does what the activities say that name them, from the
first to the last frame of the actor's own timespan, or else of the activity's. There is a line for every box; nothing
is interpolated, because the format does not say so. Boxes of things that are no persons are left out. Source: the KPF
document and meva.py of vipy.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from classquery.data.annotations.collecting import TubeCollector, as_track, four_numbers, in_file, reading
from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, parsing, quote
from classquery.data.annotations.values import whole_number


_NAME = re.compile(r"(.+)\.(geom|types|activities)\.ya?ml")
_PART_OF_DAY = re.compile(r"\.r\d+$")  # MEVA's files have it in their names, and the videos may not.
_PACKET = re.compile(r"^\s*-\s*\{?\s*[\"']?(geom|types|act|meta)[\"']?\s*:", re.MULTILINE)
# A packet without anything nested in it, of which a file has hundreds of thousands: YAML takes ten times as long.
_PLAIN_GEOM = re.compile(r"\s*-\s*\{\s*geom\s*:\s*\{([^{}\[\]#]*)\}\s*\}\s*")
_PERSON = ("person", "people", "human")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Span(NamedTuple):
    activity: str
    first: int
    last: int


def sniff_kpf(source: Source) -> bool:
    """Whether the name is one of the three and the file a list of packets."""
    return _NAME.fullmatch(source.path.name) is not None and _PACKET.search(source.head) is not None


def read_kpf(sources: Sequence[Source], context: Context) -> Content:
    """Read the files of several videos, three of each."""
    content = Content(box_format="pixel")
    videos: dict[str, dict[str, Source]] = defaultdict(dict)
    for source in sources:
        stem, kind = _stem_and_kind(source)
        videos[stem][kind] = source
    for stem, files in videos.items():
        if "geom" not in files:
            raise AnnotationError(f"{stem} has no boxes: put {stem}.geom.yml beside its other files")
        _read(stem, files, context, content)
    return content


def _stem_and_kind(source: Source) -> tuple[str, str]:
    match = _NAME.fullmatch(source.path.name)
    if match is None:
        raise AnnotationError(
            f"{source.path.name}: KPF is called NAME.geom.yml, NAME.types.yml and NAME.activities.yml"
        )
    return str(source.path.with_name(match[1])), match[2]


def _read(stem: str, files: Mapping[str, Source], context: Context, content: Content) -> None:
    video = files["geom"].path.name.removesuffix(".yml").removesuffix(".yaml").removesuffix(".geom")
    content.videos[stem] = VideoClaim((video, _PART_OF_DAY.sub("", video)))
    kinds = _kinds(files["types"], context) if "types" in files else {}
    spans = _spans(files["activities"], context) if "activities" in files else {}
    for kind, why in (("types", "everybody counts as a person"), ("activities", "nobody knows what they do")):
        if kind not in files:
            content.warnings.append(f"{video} has no {video}.{kind}.yml: {why}")
    only_persons = any(kind.lower() in _PERSON for kind in kinds.values())
    source, tubes = files["geom"], TubeCollector(content)
    for place, packet in _geoms(source):
        with reading(context, place):
            if "g0" not in packet:
                content.ignored["packets of other shapes than a box"] += 1
                continue
            track, frame = packet["id1"], whole_number(packet["ts0"], "ts0")
            kind = kinds.get(str(track), "")
            if only_persons and kind and kind.lower() not in _PERSON:
                content.ignored[f"boxes of type {kind}"] += 1
                continue
            corners = packet["g0"]
            box = four_numbers(corners.split() if isinstance(corners, str) else corners, "g0")
            does = {span.activity for span in spans.get(str(track), ()) if span.first <= frame <= span.last}
            labels = tuple(sorted(does)) if "activities" in files else None
            who = in_file(source, as_track(track))
            tubes.add(source.place(f"track {track}"), stem, who, labels, frame, box)
    tubes.finish()


def _geoms(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the packets with boxes, and how to name them."""
    lines = source.text().splitlines()
    plain = [_PLAIN_GEOM.fullmatch(line) for line in lines]
    others = [line for line, match in zip(lines, plain, strict=True) if match is None]
    if any("geom" in line for line in others):
        yield from ((source.place(f"packet {n}"), item["geom"]) for n, item in _packets(source, "geom"))
        return
    for line_number, match in enumerate(plain, start=1):
        if match is not None:
            pairs = (pair.partition(":") for pair in match[1].split(","))
            yield source.place(f"line {line_number}"), {key.strip(): value.strip(" \t\"'") for key, _, value in pairs}


def _packets(source: Source, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the packets of a kind with their place in the file, counted from 1."""
    with parsing(source.path, "it is no YAML, perhaps cut off: download it again"):
        packets = _load(source.text())
    if not isinstance(packets, list | None):
        raise AnnotationError(f"{source.path} must be a list of packets, got {quote(packets)}")
    for number, packet in enumerate(packets or (), start=1):
        if isinstance(packet, Mapping) and isinstance(packet.get(kind), Mapping):
            yield number, packet


def _load(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _likeliest(scores: Any) -> str:
    if not isinstance(scores, Mapping) or not scores:
        raise AnnotationError(f"must be names with confidences, got {quote(scores)}")
    return str(max(scores, key=lambda name: float(scores[name])))


def _kinds(source: Source, context: Context) -> dict[str, str]:
    """Return what each track is."""
    kinds = {}
    for number, packet in _packets(source, "types"):
        with reading(context, source.place(f"packet {number}")):
            types = packet["types"]
            scores = next((value for key, value in types.items() if str(key).startswith("cset")), None)
            kinds[str(types["id1"])] = str(types["obj_type"]) if "obj_type" in types else _likeliest(scores)
    return kinds


def _spans(source: Source, context: Context) -> dict[str, list[_Span]]:
    """Return what each track does, and when."""
    spans: dict[str, list[_Span]] = defaultdict(list)
    for number, packet in _packets(source, "act"):
        with reading(context, source.place(f"packet {number}")):
            act = packet["act"]
            names = next((value for key, value in act.items() if re.fullmatch(r"act\d+", str(key))), None)
            activity = _likeliest(names)
            for actor in act["actors"]:
                for first, last in _ranges(actor.get("timespan") or act.get("timespan")):
                    spans[str(actor["id1"])].append(_Span(activity, first, last))
    return spans


def _ranges(timespan: Any) -> Iterator[tuple[int, int]]:
    """Yield the first and last frame of each part of a timespan."""
    for part in timespan or ():
        if "tsr0" in part:
            first, last = (whole_number(frame, "tsr0") for frame in part["tsr0"])
            yield first, last


KPF = Format("kpf", "KPF (MEVA, VIRAT)", sniff_kpf, read_kpf)
