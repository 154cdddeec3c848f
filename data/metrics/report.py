"""A page that shows an analysis of `analyze`: one HTML file without anything from outside, and a picture of it."""

import html
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from classquery.data.metrics.analysis import ERRORS, KINDS
from classquery.data.whole_files import replacing, write_json


logger = logging.getLogger(__name__)

NAMES = {
    "true_positive": "right",
    "duplicate": "duplicate",
    "localisation": "localisation",
    "class_confusion": "class confusion",
    "localisation_and_class": "localisation and class",
    "background": "background",
    "missed": "missed",
    "ground_truth_boxes": "all boxes found were right",
    "ground_truth_classes": "all classes were right",
}
MEANINGS = {
    "true_positive": "reaches ground truth of the label first",
    "duplicate": "reaches ground truth that a better detection has",
    "localisation": "near ground truth of the label, but the box is off",
    "class_confusion": "the box is right, but the actor does not do that",
    "localisation_and_class": "near an actor who does not do that",
    "background": "nobody is there",
    "missed": "ground truth that no detection reaches",
}
COLORS = {
    "true_positive": "#2a9d8f",
    "duplicate": "#e9c46a",
    "localisation": "#f4a261",
    "class_confusion": "#d1495b",
    "localisation_and_class": "#8f5db7",
    "background": "#9aa5b1",
    "missed": "#6c7f9e",
    "ground_truth_boxes": "#3d7ea6",
    "ground_truth_classes": "#3d7ea6",
}
_ORDER = tuple(reversed(KINDS))  # Right ones first.
_NUM_CONFUSIONS = 15
# Numbers of fewer boxes than these change by chance: a box more or less is five points of recall.
FEW_BOXES = 20


def write_report(
    folder: str | Path, analysis: Mapping[str, Any], *, metrics: Mapping[str, float] | None = None, title: str = ""
) -> Path:
    """Write `analysis.json`, `report.html` and, if matplotlib is installed, `report.png`.

    Args:
        folder: Where to write; made if it is not there.
        analysis: What `analyze` returns.
        metrics: Numbers by name to show at the top.
        title: Heading; by default "What costs frame mAP".

    Returns:
        The path of the page.
    """
    folder, title = Path(folder), title or "What costs frame mAP"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "analysis.json", analysis, indent=1)
    with replacing(folder / "report.html") as partial_path:
        partial_path.write_text(page(analysis, metrics or {}, title), encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        with replacing(folder / "report.png") as partial_path:
            draw_report(analysis, partial_path, title)
    else:
        logger.warning('No report.png: it needs matplotlib, pip install "classquery[demo]".')
    return folder / "report.html"


# The page


def page(analysis: Mapping[str, Any], metrics: Mapping[str, float], title: str) -> str:
    """The whole page."""
    percent = f"{100 * analysis['iou_threshold']:g}"
    sections = [
        _tiles(analysis, metrics),
        _warning(analysis),
        _section(
            "What would help", _gains(analysis), f"Frame mAP at IoU {percent} % if one thing was mended, in points."
        ),
        _section("The best detections", _best(analysis), _BEST_NOTE),
        _section("Size of the actor", _sizes(analysis), _SIZE_NOTE),
        _section("Labels", _labels(analysis), _LABELS_NOTE),
        _section("Thresholds", _thresholds(metrics), _THRESHOLDS_NOTE),
        _section("Confusions", _confusions(analysis), "Among the best detections: what the actor really does."),
        _section("Words", _words(analysis)),
    ]
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(filter(None, sections)))


def _section(title: str, content: str, note: str = "") -> str:
    paragraph = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{paragraph}{content}</section>" if content else ""


def _tiles(analysis: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    shown = {name.removeprefix("eval_"): value for name, value in metrics.items() if "_map_" in name}
    shown = shown or {f"frame_map_{100 * analysis['iou_threshold']:g}": analysis["frame_map"]}
    numbers = {name.replace("_", " ").replace("map", "mAP"): _points(value) for name, value in shown.items()}
    counts = {
        "frames": "num_frames",
        "actors": "num_actors",
        "actions of actors": "num_ground_truth",
        "boxes found": "num_boxes",
    }
    numbers |= {name: f"{analysis[key]:,}" for name, key in counts.items()}
    tiles = (f"<div><b>{value}</b><span>{html.escape(name)}</span></div>" for name, value in numbers.items())
    return f'<div class="tiles">{"".join(tiles)}</div>'


def is_of_few(num_boxes: int) -> bool:
    """Whether numbers of so many boxes are marked: they change by chance."""
    return num_boxes < FEW_BOXES


def _warning(analysis: Mapping[str, Any]) -> str:
    """What to think of all numbers, where they are of few boxes."""
    number = analysis["num_ground_truth"]
    text = f"All numbers are of {number} actions of actors only: they change by chance, and say little about errors."
    return f'<p class="few">{text}</p>' if is_of_few(number) else ""


def gains(analysis: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What would help, and by how much, most first."""
    entries = {name: analysis["oracles"][name]["gain"] for name in ("ground_truth_boxes", "ground_truth_classes")}
    entries |= {
        error: (analysis["missed"] if error == "missed" else analysis["kinds"][error])["gain"] for error in ERRORS
    }
    return sorted(((name, gain or 0.0) for name, gain in entries.items()), key=lambda entry: -entry[1])


def _gains(analysis: Mapping[str, Any]) -> str:
    entries = gains(analysis)
    largest = max(gain for _, gain in entries) or 1
    rows = (
        f"<tr><th>{_gain_name(name)}</th><td class='wide'>{_bar([(max(gain, 0) / largest, COLORS[name])])}</td>"
        f"<td>{100 * gain:+.1f}</td></tr>"
        for name, gain in entries
    )
    return f"<table>{''.join(rows)}</table>"


def _gain_name(name: str) -> str:
    if name == "missed":
        return "if nothing was missed"
    return f"if {NAMES[name]}" if name.startswith("ground_truth") else f"without {NAMES[name]}"


def best_shares(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    """Share of each kind among the best detections."""
    total = sum(counts.values()) or 1
    return [(kind, counts[kind] / total) for kind in _ORDER]


def _best(analysis: Mapping[str, Any]) -> str:
    shares = best_shares({kind: analysis["kinds"][kind]["count_among_best"] for kind in KINDS})
    legend = "".join(
        f'<li><i style="background:{COLORS[kind]}"></i>{NAMES[kind]} {100 * share:.1f} %</li>'
        for kind, share in shares
    )
    return _bar([(share, COLORS[kind]) for kind, share in shares], "thick") + f'<ul class="legend">{legend}</ul>'


def _sizes(analysis: Mapping[str, Any]) -> str:
    rows = (
        f"<tr{_mark(size['actors'])}><th>{size['name']}</th>"
        f"<td class='wide'>{_bar([(size['frame_map'] or 0, COLORS['true_positive'])])}</td>"
        f"<td>{_points(size['frame_map'])}</td><td>{_percent(size['recall'])}</td><td>{size['actors']:,}</td></tr>"
        for size in analysis["sizes"]
    )
    head = "<tr><th></th><th></th><th>mAP</th><th>found</th><th>actors</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _labels(analysis: Mapping[str, Any]) -> str:
    rows = (
        f"<tr{_mark(label['ground_truth'])}><th>{html.escape(label['name'])}</th>"
        f"<td class='wide'>{_bar([(share, COLORS[kind]) for kind, share in best_shares(label['best'])])}</td>"
        f"<td>{100 * label['ap']:.1f}</td><td>{_percent(label['recall'])}</td><td>{label['ground_truth']:,}</td></tr>"
        for label in sorted(analysis["labels"], key=lambda label: -label["ap"])
    )
    head = "<tr><th></th><th></th><th>AP</th><th>found</th><th>actors</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _thresholds(metrics: Mapping[str, float]) -> str:
    """What the thresholds of the classes give, where they are among the metrics."""
    columns = ("threshold", "precision", "recall")
    found = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    labels = [name.removeprefix("threshold/") for name in found if name.startswith("threshold/")]
    rows = (
        f"<tr><th>{html.escape(label)}</th><td>{found[f'threshold/{label}']:.3f}</td>"
        + "".join(f"<td>{_percent(found.get(f'{name}/{label}'))}</td>" for name in columns[1:])
        + "</tr>"
        for label in labels
    )
    head = "<tr><th></th>" + "".join(f"<th>{name}</th>" for name in columns) + "</tr>"
    return f"<table>{head}{''.join(rows)}</table>" if labels else ""


def _confusions(analysis: Mapping[str, Any]) -> str:
    shown: Sequence[Mapping[str, Any]] = analysis["confusions"][:_NUM_CONFUSIONS]
    rows = (
        f"<tr><th>{html.escape(entry['label'])}</th><td class='text'>{html.escape(entry['actor_label'])}</td>"
        f"<td>{entry['count']:,}</td></tr>"
        for entry in shown
    )
    head = "<tr><th>detected</th><th class='text'>annotated</th><th>times</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>" if shown else ""


def _words(analysis: Mapping[str, Any]) -> str:
    entries = "".join(f"<dt>{NAMES[kind]}</dt><dd>{meaning}</dd>" for kind, meaning in MEANINGS.items())
    reach, near = (f"{100 * analysis[key]:g} %" for key in ("iou_threshold", "background_iou"))
    return f"<p>A box reaches an actor at an IoU of {reach} and is near one at {near}.</p><dl>{entries}</dl>"


def _mark(num_boxes: int) -> str:
    return ' class="few"' if is_of_few(num_boxes) else ""


def _bar(parts: Iterable[tuple[float, str]], kind: str = "") -> str:
    spans = (f'<span style="width:{100 * share:.2f}%;background:{color}"></span>' for share, color in parts if share)
    return f'<div class="bar {kind}">{"".join(spans)}</div>'


def _points(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


_THRESHOLDS_NOTE = (
    "The lowest score of each label to report, as saved with the model, and what it gives on the same frames."
)
_LABELS_NOTE = (
    "By AP. Bars show the best detections of the label, as above. Pale, with a ~: fewer than "
    f"{FEW_BOXES} actors, of whom numbers change by chance."
)
_BEST_NOTE = (
    "Of each label, as many detections as it has ground truth, the highest scores first: a perfect detector has "
    "nothing but right ones."
)
_SIZE_NOTE = "By the area of the box. A third of the actors is of each size, if not set otherwise."
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5f6b7a; --line: #dfe4ea; --page: #f6f7f9; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #333c48; --page: #14181e; --card: #1d232b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 0 0 .3rem; }
p { margin: 0 0 .8rem; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
section { padding: 1rem; margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .22rem .5rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400; }
tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; padding-left: 0; max-width: 17rem; overflow-wrap: break-word; }
td:last-child, th:last-child { padding-right: 0; }
tr:first-child th:not(:first-child) { color: var(--soft); }
td { white-space: nowrap; }
tr.few > * { opacity: .55; }
tr.few > td:last-child::before { content: "~ "; }
p.few { margin: 1rem 0 0; }
.text { text-align: left; white-space: normal; }
.wide { width: 45%; }
.bar { display: flex; height: .85rem; border-radius: .25rem; overflow: hidden; background: var(--line); }
.bar.thick { height: 1.7rem; border-radius: .4rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .7rem 0 0; padding: 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--soft); }
@media (max-width: 34rem) {
  .wide { width: 22%; min-width: 3.5rem; }
  th, td { padding: .22rem .3rem; }
  table { font-size: .85rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
"""


# The picture


def draw_report(analysis: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw what would help, the best detections of each label and the sizes."""
    from matplotlib.figure import Figure

    labels = sorted(analysis["labels"], key=lambda label: label["ap"])
    figure = Figure(figsize=(12, max(6.0, 2.5 + 0.2 * len(labels))), layout="constrained", dpi=100)
    figure.suptitle(f"{title}: frame mAP {_points(analysis['frame_map'])}")
    axes = figure.subplot_mosaic([["labels", "gains"], ["labels", "sizes"]])
    _draw_labels(axes["labels"], labels)
    _draw_gains(axes["gains"], gains(analysis)[::-1])
    _draw_sizes(axes["sizes"], analysis["sizes"])
    figure.savefig(path)


def _draw_gains(axes: Any, entries: Sequence[tuple[str, float]]) -> None:
    points = [100 * gain for _, gain in entries]
    bars = axes.barh([_gain_name(name) for name, _ in entries], points, color=[COLORS[name] for name, _ in entries])
    axes.bar_label(bars, fmt="%+.1f", padding=3)
    axes.set_xlim(min(0.0, *points), max(1.0, 1.15 * max(points)))
    axes.set_title("What would help: points of mAP")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sizes(axes: Any, sizes: Sequence[Mapping[str, Any]]) -> None:
    for offset, key, name, color in (
        (-0.2, "recall", "found", COLORS["background"]),
        (0.2, "frame_map", "mAP", COLORS["true_positive"]),
    ):
        heights = [100 * (size[key] or 0) for size in sizes]
        bars = axes.bar([index + offset for index in range(len(sizes))], heights, 0.38, color=color, label=name)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xticks(range(len(sizes)), [f"{size['name']}\n{size['actors']:,} actors" for size in sizes])
    axes.set_title("By size of the actor, in percent")
    axes.set_ylim(0, 125)  # Room for the legend above full bars.
    axes.set_yticks(range(0, 101, 20))
    axes.legend(frameon=False, ncols=2, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _few_sign(label: Mapping[str, Any]) -> str:
    return "~ " if is_of_few(label["ground_truth"]) else ""


def _draw_labels(axes: Any, labels: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{label['name']}  {_few_sign(label)}{100 * label['ap']:.1f}" for label in labels]
    left = [0.0] * len(labels)
    for kind in _ORDER:
        widths = [100 * dict(best_shares(label["best"]))[kind] for label in labels]
        axes.barh(range(len(labels)), widths, left=left, color=COLORS[kind], label=NAMES[kind])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(labels)), names)
    few = f" (~ of fewer than {FEW_BOXES} actors)" if any(map(_few_sign, labels)) else ""
    axes.set_title(f"AP{few}, and the kinds of the best detections in percent")
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.margins(x=0, y=0.01)
    axes.legend(frameon=False, ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.03))
    axes.spines[["top", "right", "left"]].set_visible(False)
