"""What somebody does, from a label, an attribute or a checkbox of CVAT.

In every frame by itself:

* a box with an attribute `action` (or `activity`, `behaviour`; capital letters do not matter) does what its value
  says; nothing, if that is "none"; if it is empty or "__undefined__", nobody said it;
* a checkbox ("true" or "false") is an action by its name, so that one actor can do several things at once – where the
  label of the track only says who it is, as "person" does, and no attribute says what they do;
* otherwise, somebody does what the label of the track says: `<track label="walk">`.

With a `classes.txt`, checkboxes and labels that it names are actions, and others are not. Without one, notes of an
annotator such as "low confidence" are none, and what might be an action and is not read is told.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from classquery.data.annotations.boxes import is_name_of_ignored
from classquery.data.annotations.collecting import NO_ACTION, find_attributes
from classquery.data.annotations.schema import quote, shorten


_ACTION_ATTRIBUTES = ("action", "activity", "behavior", "behaviour")
_CHECKED = {"true": True, "false": False}
# Labels that say who it is, and not what they do.
_WHO = frozenset(
    [
        "person",
        "people",
        "human",
        "pedestrian",
        "actor",
        "adult",
        "child",
        "kid",
        "baby",
        "man",
        "woman",
        "boy",
        "girl",
        "worker",
        "player",
        "athlete",
        "patient",
        "animal",
        "individual",
        "subject",
        "object",
        "target",
        "face",
        "head",
        "body",
        "hand",
        "dog",
        "cat",
        "bird",
        "horse",
        "cow",
        "sheep",
        "pig",
        "mouse",
        "rat",
        "fish",
        "chimpanzee",
        "monkey",
        "ape",
        "zebra",
        "giraffe",
        "elephant",
        "deer",
        "car",
        "vehicle",
        "bicycle",
        "cyclist",
        "driver",
        "customer",
        "student",
    ]
)
# Beginnings of words in the names of checkboxes that are notes of an annotator.
_NOTES = re.compile(
    r"\b(confiden|unsure|sure|uncertain|certain|occlu|trunc|blur|difficult|crowd|ignore|review|verif|checked|visib|"
    r"invisib|hidden|partial|quality|error|wrong|todo|doubt|lost|generated|outside|corrected)",
    re.IGNORECASE,
)


class Classes:
    """Decides which attributes and labels of some tracks are actions, and counts what was read as what.

    Args:
        tracks: All tracks of a split.
        names: The classes in `classes.txt`, if there is one.
    """

    def __init__(self, tracks: Iterable[ET.Element], names: Collection[str] | None):
        self._names = names
        self._values: dict[str, set[str]] = defaultdict(set)
        labels = set()
        for track in tracks:
            if not self._is_region(track.get("label") or ""):
                labels.add(track.get("label") or "")
            for attribute in track.iterfind("box/attribute"):
                self._values[attribute.get("name") or ""].add((attribute.text or "").strip())
        self._actions = find_attributes(self._values, _ACTION_ATTRIBUTES)
        self._checkboxes = [name for name, values in self._values.items() if _are_checks(values)]
        self._active = self._active_checkboxes({label for label in labels if not _is_who(label)}, labels)
        self._sources: dict[str, set[str]] = defaultdict(set)
        self._unlabelled: Counter[str] = Counter()
        self._num_idle = 0

    def _active_checkboxes(self, doings: Collection[str], labels: Collection[str]) -> frozenset[str]:
        """Return the checkboxes that are actions; `doings` are labels that say more than who it is."""
        if self._names is not None:
            return frozenset(name for name in self._checkboxes if name in self._names)
        candidates = [name for name in self._checkboxes if not _is_note(name)]
        labels_are_actions = len(doings) > 1 or (len(doings) == len(labels) and len(candidates) < 2)
        return frozenset() if self._actions or labels_are_actions else frozenset(candidates)

    def of(self, track: ET.Element, box: ET.Element) -> frozenset[str] | None:
        """Return what somebody does from this box on; None if nobody said it."""
        if self._is_region(track.get("label") or ""):
            return frozenset([track.get("label")])
        values = {attribute.get("name"): (attribute.text or "").strip() for attribute in box.findall("attribute")}
        said = [values[name] for name in self._actions if name in values]
        found = {value: "an attribute" for value in said if value.lower() not in NO_ACTION}
        checks = [name for name in self._active if name in values]
        found |= {name: "a checkbox" for name in checks if values[name].lower() == "true"}
        label = track.get("label") or ""
        if self._is_class(label, said, checks):
            found[label] = "the label"
        for name, source in found.items():
            self._sources[source].add(name)
        if found or checks or any(value.lower() == "none" for value in said):
            self._num_idle += not found
            return frozenset(found)
        self._unlabelled[label] += box.get("outside") != "1"
        return None

    def _is_region(self, label: str) -> bool:
        return is_name_of_ignored(label) and (self._names is None or label not in self._names)

    def _is_class(self, label: str, said: list[str], checks: list[str]) -> bool:
        if self._names is not None and (label in self._names or _is_who(label)):
            return label in self._names
        # Where others have checkboxes, somebody without any is one whom nobody looked at.
        return not said and not checks and not (self._active and _is_who(label))

    def notes(self) -> list[str]:
        """Return which class came from what."""
        notes = [
            f"classes from {source}: {shorten(sorted(names))}"
            if source != "an attribute"
            else f"classes from the attribute {', '.join(self._actions)}: {shorten(sorted(names))}"
            for source, names in sorted(self._sources.items())
        ]
        if self._num_idle:
            notes.append(f"boxes of people who do nothing: {self._num_idle}")
        return notes

    def warnings(self) -> list[str]:
        """Return what is likely not meant so."""
        warnings = []
        if self._unlabelled.total():
            labels = ", ".join(f"{count} of {quote(label)}" for label, count in self._unlabelled.most_common(5))
            warnings.append(
                f"boxes of which nobody said what happens ({labels}): give them an action, or 'none' for nothing"
            )
        if self._names is not None:
            return warnings
        unread = [name for name in self._checkboxes if name not in self._active]
        if unread:
            warnings.append(
                f"checkboxes that are not read as actions: {shorten(sorted(unread))}; name all classes in "
                "classes.txt, with these among them or not"
            )
        others = set().union(*self._sources.values()) - self._active
        if self._active and others:
            warnings.append(
                f"checkboxes are actions ({shorten(sorted(self._active))}) beside others ({shorten(sorted(others))}); "
                "name all classes in classes.txt"
            )
        texts = [name for name in self._values if name not in {*self._actions, *self._checkboxes}]
        texts = [name for name in texts if any(self._values[name])]
        if texts:
            warnings.append(
                f"attributes that nothing reads: {shorten(sorted(texts))}; if one says what people do, call it "
                "`action`, otherwise name all classes in classes.txt"
            )
        return warnings


def _are_checks(values: Collection[str]) -> bool:
    return {value.lower() for value in values} <= {*_CHECKED}


def _is_who(label: str) -> bool:
    last = label.lower().replace("_", " ").replace("-", " ").split()[-1:]
    return bool(last) and (last[0] in _WHO or last[0].removesuffix("s") in _WHO)


def _is_note(name: str) -> bool:
    return bool(_NOTES.search(name.replace("_", " ")))
