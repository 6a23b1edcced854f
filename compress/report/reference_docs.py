"""The page docs/reference/report.md, generated from the fields of report.json. Torch-free.

`python -m compress.report.reference_docs docs/reference/report.md` writes it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.report.schema import REQUIRED, json_schema

ALWAYS = textwrap.fill(
    f"- Every report has {', '.join(f'`{key}`' for key in REQUIRED[:-1])} and `{REQUIRED[-1]}`. "
    "Every other key may be missing.",
    100,
    subsequent_indent="  ",
)
INTRODUCTION = f"""# Every key of report.json

`report.json` holds what a run found out, and the verdict. `report.html` is rendered from it and
from the files beside it; `compress report RUN` renders it again. `compress schema --report` prints
the JSON Schema.

- Accuracies are fractions in [0, 1]. Drops and gains are percentage points.
- An interval is `[low, high]` and has a confidence level of 95 %.
- `null` means that a value was not measured or does not apply; the descriptions say which.
- `schema` is 1. Keys may be added; none is removed or changes its meaning, and unknown keys are
  kept when a command writes the file again.
{ALWAYS}
"""

# Names of JSON types, of one value and of several.
NAMES = {
    "integer": ("whole number", "whole numbers"),
    "number": ("number", "numbers"),
    "string": ("text", "text"),
    "boolean": ("`true`, `false`", "`true`, `false`"),
}
# Name, contents.
FILES = (
    (
        "predictions.npz",
        "`labels` (N,) int, `sha256` (N,) text: the test images by content; `logits/<file>` (N, K) float of each file",
    ),
    (
        "predictions.csv",
        "the same for people, a row a test image: `path` relative to `data.root` (its number from 0 where the source "
        "has no files), `label`, and for each file `<file> answer` and `<file> probability`, the softmax of its logits",
    ),
    ("latency.npz", "`<file>`: times of the runs in ms, (R,) float; `rounds/<file>`: the round of each, (R,) int"),
    (
        "history/*.csv",
        'student.csv, baseline.csv and one file a candidate (its name, "/" as "-"), a row an epoch: `epoch`, `lr`, one '
        "column a loss (the task loss first), with `train.trace_gradients` also `cos_classifier` and `cos_backbone` "
        "(cosines of gradients, mean over the traced steps), `top1_validation` (a fraction), `images_per_second`",
    ),
    (
        "pictures.npz",
        "test images that the teacher gets right and the shipped student wrong: `images` (M, H, W, 3) uint8 RGB, "
        "`labels`, `teacher`, `student` (M,) int: the right and the predicted classes, `total`: how many there are in "
        "all; the same for single slices and classes: `slice_images` (S, H, W, 3), `slice_labels`, `slice_student` "
        "(S,) int, `slice_margin` (S,) float, `slice_name` (S,) text; `names` (M,) and `slice_names` (S,) text: paths "
        "relative to `data.root`, where the source has files; with `report.images: false` no images",
    ),
    (
        "analysis.npz",
        "of `compress analyze`: `correlation_<row>` (K, K) float, differences; `features_teacher`, `features_student` "
        "(M, 2) float, `features_labels` (M,) int; `calibration_<row>_pictures`, `_confidence`, `_accuracy` (15,); "
        "`against_<run>_epoch`, `_top1`, `_task`, `_cos_classifier`, `_cos_backbone` (E,)",
    ),
)


def markdown() -> str:
    """Return the whole page: one table per part of the report, then the files beside it."""
    schema = json_schema()
    homes: dict[str, str] = {}
    _find_homes(schema, schema, "", homes)
    parts = [INTRODUCTION, _table("The report", schema, homes)]
    parts += [_table(f"`{path}`", schema["$defs"][name], homes) for name, path in homes.items()]
    files = "\n".join(f"| `{name}` | {contents} |" for name, contents in FILES)
    parts.append(f"## Files beside it\n\nEach is optional.\n\n| file | contents |\n|---|---|\n{files}\n")
    return "\n".join(parts)


def _find_homes(part: dict[str, Any], schema: dict[str, Any], path: str, homes: dict[str, str]) -> None:
    """Collect the path where each part is described: the first one, in the order of the report."""
    for key, value in part["properties"].items():
        for name, suffix in _references(value):
            if name not in homes:
                homes[name] = f"{path}.{key}{suffix}".lstrip(".")
                _find_homes(schema["$defs"][name], schema, homes[name], homes)


def _references(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the parts that a key holds, and `[]` for a list of them."""
    for option in value.get("anyOf", [value]):
        if "$ref" in option:
            yield option["$ref"].rsplit("/", 1)[1], ""
        elif "$ref" in option.get("items", {}):
            yield option["items"]["$ref"].rsplit("/", 1)[1], "[]"


def _table(title: str, part: dict[str, Any], homes: dict[str, str]) -> str:
    rows = [_row(key, value, homes) for key, value in part["properties"].items()]
    head = [f"## {title}", "", part["description"], "", "| key | type | meaning |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _row(key: str, value: dict[str, Any], homes: dict[str, str]) -> str:
    meaning = value["description"].replace("|", "\\|")
    return f"| `{key}` | {_kind(value, homes)} | {meaning} |"


def _kind(value: dict[str, Any], homes: dict[str, str]) -> str:
    """Return a type in words; that a value may be null is left to its description."""
    if "anyOf" in value:
        return " or ".join(_kind(option, homes) for option in value["anyOf"] if option.get("type") != "null")
    if "$ref" in value:
        return f"object, see `{homes[value['$ref'].rsplit('/', 1)[1]]}`"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{option}`" for option in value.get("enum", [value.get("const")]))
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])} numbers"
        if "$ref" in value["items"]:
            return f"list of objects, see `{homes[value['items']['$ref'].rsplit('/', 1)[1]]}`"
        return _of("list", value["items"], homes)
    if kind == "object":
        inner = value.get("additionalProperties")
        return _of("object", inner, homes) if isinstance(inner, dict) and inner else "object"
    return NAMES[str(kind)][0]


def _of(container: str, value: dict[str, Any], homes: dict[str, str]) -> str:
    """Return `list of numbers`, or `list, each a ...` where the values have no plain plural."""
    plural = NAMES.get(value.get("type", ""))
    return f"{container} of {plural[1]}" if plural else f"{container}, each value a {_kind(value, homes)}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
