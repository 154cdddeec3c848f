"""The list of published weights."""

from classquery.engine.weights.zoo import ANNOTATIONS_LINK, LICENCE, PublishedWeights, cache_folder, load_zoo


_COLUMNS = ("name", "kind", "trained on", "network", "f-mAP", "v-mAP", "size", "licence", "here")


def describe_zoo() -> str:
    """A table of the published weights: what they are, what was measured with them, and what is here already."""
    rows = [_COLUMNS, *(_row(weights) for weights in load_zoo().values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [
        "f-mAP, v-mAP: as published, at IoU 0.5, in percent; not measured here. size: of the file that is here, else "
        "about that of the weights.",
        "csn50, csn152 and vit_b come in one archive.",
        f"annotations of the authors: {ANNOTATIONS_LINK}",
        f"folder: {cache_folder()}",
    ]
    return "\n".join([*lines, "", *notes])


def _row(weights: PublishedWeights) -> tuple[str, ...]:
    is_here = weights.path.exists()
    megabytes = weights.path.stat().st_size / 1e6 if is_here else weights.megabytes
    return (
        weights.name,
        weights.kind,
        weights.data,
        weights.network,
        f"{weights.frame_map or '-'}",
        f"{weights.video_map or '-'}",
        "?" if megabytes is None else f"{'' if is_here else '~'}{megabytes:,.0f} MB",
        LICENCE,
        "ready" if weights.folder.exists() else "fetched" if is_here else "-",
    )
