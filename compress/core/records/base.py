"""How records become JSON and cache keys.

A record is a frozen dataclass of numbers, strings and files, never of live modules. `to_json` and `from_json` carry it
through `stage.json`; `key_content` is what a cache key is made of, in which files count by content and not by path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.pt"  # in a stage's folder, while its training is not finished
# Fields of records that describe how a result came about and not what it is: never part of a cache key. Settings of the
# same names (`train.threads`, `train.precision`) are.
EXCLUDED_FROM_KEY = frozenset(
    {
        "seconds",
        "images_per_second",
        "history",
        "threads",
        "kernels",
        "precision",
        "origin",
        "largest_logit",
        "streamed",
        "teacher_rows",
        "gpu",
        "advice",
        "checks",
        "score",
    }
)
# Fields and settings that enter a key only when they are set, so that older keys stay valid.
IN_KEY_IF_SET = frozenset(
    {
        "distortion",
        "shards_at_once",
        "group",
        "groups",
        "train_names",
        "test_names",
        "train_groups",
        "test_groups",
        "labelled",
        "labels",
        "bits",
        "unlabelled",
        "auto",
        "value_range",
        "output",
        "weights_key",
        "crop_scale",
        "fold",
        "batch_norm",
        "probe",
        "optimizer",
        "decay_norms",
        "clip_norm",
        "ema",
        "patience",
        "report",
        "bundle",
        "class_weights",
        "sampling",
        "metric",
    }
)
# Fields that a record's JSON has only when they are set, so that older records stay as they are.
STORED_IF_SET = frozenset(
    {
        "advice",
        "checks",
        "groups",
        "output",
        "score",
        "test_groups",
        "test_names",
        "train_groups",
        "train_names",
        "value_range",
        "weights_key",
    }
)

# Fields that were renamed: class -> field -> the name that they keep in stage.json and in cache keys.
JSON_NAMES: dict[str, dict[str, str]] = {
    "Exported": {"images": "pictures"},
    "Measured": {"gallery": "pictures"},
    "Proxied": {"images": "pictures"},
    "Quantized": {"calibration_images": "calibration_pictures"},
}


def json_name(kind: type, field: str) -> str:
    """Return the name under which a record's field is stored."""
    return JSON_NAMES.get(kind.__name__, {}).get(field, field)


@dataclass(frozen=True)
class File:
    """A file that a stage wrote or read. `sha256` is the lower-case hex digest of its content."""

    path: Path
    sha256: str
    bytes: int

    @staticmethod
    def of(path: Path) -> File:
        """Return the record of an existing file."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path, digest, path.stat().st_size)


def to_json(value: Any) -> Any:
    """Return a record as plain JSON values (recursive)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(item) for name, item in _stored_fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def _stored_fields(record: Any) -> list[tuple[str, Any]]:
    values = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))
    return [
        (json_name(type(record), name), value)
        for name, value in values
        if value is not None or name not in STORED_IF_SET
    ]


def from_json(kind: Any, data: Any) -> Any:
    """Return the value of the annotated type `kind` that `to_json` gave `data` for."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return from_json(inner[0], data) if len(inner) == 1 else data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(
            **{
                field.name: from_json(hints[field.name], data[json_name(kind, field.name)])
                for field in dataclasses.fields(kind)
                if json_name(kind, field.name) in data
            }
        )
    if origin is tuple:
        args = typing.get_args(kind)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(from_json(args[0], item) for item in data)
        return tuple(from_json(arg, item) for arg, item in zip(args, data, strict=True))
    if origin is list:
        return [from_json(typing.get_args(kind)[0], item) for item in data]
    if origin is dict:
        return {key: from_json(typing.get_args(kind)[1], item) for key, item in data.items()}
    if kind is Path:
        return Path(data)
    return data


def key_content(value: Any) -> Any:
    """Return the JSON values that enter a cache key: a file counts by content; seconds and the like do not count."""
    if isinstance(value, File):
        return {"sha256": value.sha256}
    if hasattr(value, "model_dump"):
        return _settings_in_key(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: key_content(item)
            for name, item in _stored_fields(value)
            if name not in EXCLUDED_FROM_KEY and (item is not None or name not in IN_KEY_IF_SET)
        }
    if isinstance(value, dict):
        return {str(key): key_content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [key_content(item) for item in value]
    return value


def _settings_in_key(value: Any) -> Any:
    """Return a section's plain values without those that count only when they are set, at any depth."""
    if isinstance(value, dict):
        return {
            name: _settings_in_key(item)
            for name, item in value.items()
            if item is not None or name not in IN_KEY_IF_SET
        }
    return [_settings_in_key(item) for item in value] if isinstance(value, list) else value


def sha256_of(value: Any) -> str:
    """Return the sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(key_content(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
