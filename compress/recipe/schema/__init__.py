"""The recipe's sections: keys, types, ranges, defaults. Loads no torch, so that a wrong recipe fails at once.

Every key has a default except `data` and the two networks. `yaml_parser.py` reads the YAML with positions, `loader.py`
checks it, and `error_messages.py` turns pydantic's errors into one line each. This package defines what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from compress.recipe.schema.base import NAME_PATTERN, PATTERNS, Normalize, Section
from compress.recipe.schema.data import KNOWN_CLASSES, ColorJitter, Data, RandAugment
from compress.recipe.schema.deployment import Device, Export, Quantize, Require, Validate
from compress.recipe.schema.feature_methods import At, Catkd, Crd, Fitnet, Ofd, ReviewKd, Rkd, Simkd
from compress.recipe.schema.logit_methods import Dhkd, Dist, Dkd, Kd, Plain
from compress.recipe.schema.methods import METHOD_SECTIONS, METHOD_SUMMARIES, Distill
from compress.recipe.schema.networks import Candidate, Choice, Choose, Proxy, Student, Teacher
from compress.recipe.schema.privacy import BundleImages, ReportImages
from compress.recipe.schema.resolved import ResolvedCandidate, ResolvedQat, ResolvedSchedule, ResolvedTrain
from compress.recipe.schema.train import Schedule, Train

__all__ = [
    "KNOWN_CLASSES",
    "METHOD_SECTIONS",
    "METHOD_SUMMARIES",
    "PATTERNS",
    "At",
    "BundleImages",
    "Candidate",
    "Catkd",
    "Choice",
    "Choose",
    "ColorJitter",
    "Crd",
    "Data",
    "Device",
    "Dhkd",
    "Dist",
    "Distill",
    "Dkd",
    "Export",
    "Fitnet",
    "Kd",
    "Normalize",
    "Ofd",
    "Plain",
    "Proxy",
    "Quantize",
    "RandAugment",
    "Recipe",
    "ReportImages",
    "Require",
    "ResolvedCandidate",
    "ResolvedQat",
    "ResolvedSchedule",
    "ResolvedTrain",
    "ReviewKd",
    "Rkd",
    "Schedule",
    "Section",
    "Simkd",
    "Student",
    "Teacher",
    "Train",
    "Validate",
    "json_schema",
]


class Recipe(Section):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        default=None, description="name of the folder that holds its runs; null: the file's name"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="seed of the student's training: initial weights, order of images, views"
    )
    data: Data = Field(description="the images and their splits")
    teacher: Teacher = Field(description="the teacher's candidates")
    student: Student = Field(description="the network that ships")
    distill: Distill = Field(default=Distill(), description="the distillation method")
    train: Train = Field(default=Train(), description="the student's training")
    export: Export = Field(default=Export(), description="the ONNX files")
    quantize: Quantize = Field(default=Quantize(), description="int8")
    validate_: Validate = Field(
        default=Validate(), alias="validate", description="how accuracy and latency are measured"
    )
    device: Device = Field(default=Device(), description="where the bundle is verified")
    require: Require = Field(default=Require(), description="the limits behind the verdict")
    # None where they are left out, so that recipes without them keep their keys.
    report: ReportImages | None = Field(default=None, description="which images the report shows; null: its defaults")
    bundle: BundleImages | None = Field(default=None, description="which images go to the device; null: its defaults")

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @property
    def shows_images(self) -> bool:
        """Return whether the report shows the user's images."""
        return self.report is None or self.report.images

    @property
    def bundles_images(self) -> bool:
        """Return whether the bundle holds the user's images, not synthetic ones."""
        return self.bundle is None or self.bundle.images == "test"

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain values under the names that a user writes."""
        return self.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe as a user writes it: with flat keys of the methods in `distill`."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    distill = schema["$defs"]["Distill"]["properties"]
    one = {"type": "array", "items": distill["method"], "minItems": 1, "maxItems": 1}
    distill["method"] = {"anyOf": [distill["method"], one], "default": "dhkd"}
    flat: dict[str, list[Any]] = {}
    for section in METHOD_SECTIONS.values():
        for key, value in section.model_json_schema()["properties"].items() if section.model_fields else ():
            flat.setdefault(key, []).append({name: part for name, part in value.items() if name != "default"})
    for key, options in flat.items():
        options += [distill[key]] if key in distill else []
        distill[key] = options[0] if len(options) == 1 else {"anyOf": options}
    return schema
