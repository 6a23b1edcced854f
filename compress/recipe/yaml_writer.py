"""Writes plain values as YAML, and changes single values of a YAML text. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.nodes import SequenceNode

from compress.recipe.yaml_parser import FLOAT, Keys, PositionLoader


def changed(text: str, values: Mapping[Keys, str]) -> str:
    """Change the texts at some keys of a YAML mapping and leave all else as it is, comments too.

    Args:
        text: the YAML of a mapping.
        values: key -> its new text. A key that is missing at the top is put first.
    """
    root: Any = PositionLoader(text).get_single_node()
    spans: list[tuple[int, int, str]] = []
    for keys, value in values.items():
        node = _below(root, keys)
        word = yaml.dump(value, Dumper=_Dumper, default_style='"', allow_unicode=True, width=math.inf).rstrip()
        if node is None:
            start = root.start_mark.index + bool(root.flow_style)
            behind = ", " if root.flow_style else "\n" + " " * root.start_mark.column
            spans.append((start, start, f"{keys[0]}: {word}{behind}"))
        else:
            start, end = node.start_mark.index, node.end_mark.index
            spans.append(
                (start, end, f" {word}" if start == end else f"{word}\n" if node.style in ("|", ">") else word)
            )
    for start, end, word in sorted(spans, reverse=True):
        text = text[:start] + word + text[end:]
    return text


def _below(node: Any, keys: Keys) -> Any:
    """Return the node at `keys`; None where there is none."""
    for key in keys:
        inside = node.value if isinstance(node, SequenceNode) else {name.value: value for name, value in node.value}
        node = inside[key] if isinstance(key, int) else inside.get(key)
    return node


class _Dumper(yaml.SafeDumper):
    """Writes block style without anchors, and quotes text that the parser or YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT.pattern})$"), list("-+.0123456789"))


def write(data: Any) -> str:
    """Write plain values as YAML; `yaml_tree.read` gives the same values back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
