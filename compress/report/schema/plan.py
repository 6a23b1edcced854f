"""`plan`: the measurements that `student.choose` picked by, before any training."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart
from compress.report.schema.measurements import MEMORY, SHA256, LatencySummary
from compress.report.schema.requirement import RequirementRow
from compress.verdict.requirements import Status


class PlannedFile(ReportPart):
    """One network with random weights as a file."""

    bytes: int | None = Field(default=None, description="size in bytes")
    sha256: str | None = Field(default=None, description=SHA256)
    latency_ms: LatencySummary | None = Field(default=None, description="null: not timed")
    peak_memory_bytes: int | None = Field(default=None, description=MEMORY)
    target: str | None = Field(default=None, description="the processors that an int8 file is built for; null: any")
    int8_mac_share: Number | None = Field(
        default=None, description="share of multiply-accumulates in integer kernels, in [0, 1]; null: not known"
    )
    islands: list[str] | None = Field(default=None, description="what runs in float inside int8; null: not known")


class PlannedSpeedup(ReportPart):
    """The file that would ship against one teacher."""

    against: str | None = Field(default=None, description="the teacher")
    speedup: Number | None = Field(default=None, description="the teacher's latency over this file's")
    ci95: Interval | None = Field(default=None, description="95 % confidence interval of `speedup`")


class PlannedNetwork(ReportPart):
    """One network of a plan."""

    role: str | None = Field(default=None, description="teacher, student, choice or neighbour")
    name: str | None = Field(default=None, description="the network and its width")
    model: str | None = Field(default=None, description="the network's name")
    width: Number | None = Field(default=None, description="width multiplier; null: the network has none")
    params: int | None = Field(default=None, description="number of parameters")
    macs: int | None = Field(
        default=None, description="multiply-accumulates for one image; null: not shown by the file"
    )
    ships: str = Field(default="fp32", description="the precision that would ship: fp32 or int8")
    ships_as: str | None = Field(
        default=None, description="how the method ships it, one sentence; null: as the recipe names it"
    )
    fp32: PlannedFile = Field(default=PlannedFile(), description="the float file")
    int8: PlannedFile | None = Field(default=None, description="the int8 file; null: a teacher, or float ships")
    int8_speedup: Number | None = Field(default=None, description="float latency over int8 latency; null: not timed")
    int8_speedup_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `int8_speedup`")
    speedups: list[PlannedSpeedup] = Field(default=[], description="against each teacher")
    other_cores: Number | None = Field(
        default=None, description="mean cores that other processes used; null: not known"
    )
    disturbances: list[str] = Field(default=[], description="why absolute times are doubtful, one sentence each")
    unfit: str | None = Field(default=None, description="why ratios are doubtful too; null: they are not")
    seconds: Number | None = Field(default=None, description="seconds that it took when it was measured")
    reused: bool | None = Field(default=None, description="whether it came from the cache")
    requirements: list[RequirementRow] = Field(default=[], description="the limits that can be judged before training")
    status: Status | None = Field(default=None, description="the verdict on them; missing: a teacher")

    @property
    def shipped(self) -> PlannedFile:
        """The file that would ship."""
        return self.int8 if self.ships == "int8" and self.int8 is not None else self.fp32


class PlannedChoice(ReportPart):
    """What `student.choose` picked."""

    max_latency_ms: Number | None = Field(default=None, description="the latency limit in ms")
    chosen: str | None = Field(default=None, description="the network's name; null: none is fast enough")
    sentence: str | None = Field(default=None, description="the choice in words")


class PlanSection(ReportPart):
    """A plan, as `compress plan` writes it. Missing: the recipe names its student."""

    schema_version: int | None = Field(default=None, alias="schema", description="1")
    status: Status | None = Field(default=None, description="the verdict on the student's limits")
    student: str | None = Field(default=None, description="the network that was judged; null: none is fast enough")
    image_size: int | None = Field(default=None, description="side of the input in pixels")
    classes: int | None = Field(default=None, description="number of classes")
    pictures: str | None = Field(default=None, description="training pictures, or noise where the data are not here")
    threads: int | None = Field(default=None, description="CPU threads of the runtime")
    device: str | None = Field(default=None, description="the device that was timed; local: this host")
    host: dict[str, Any] = Field(default={}, description="this host, as in `environment`")
    networks: list[PlannedNetwork] = Field(default=[], description="the networks that were measured")
    requirements: list[RequirementRow] = Field(default=[], description="the limits that can be judged before training")
    not_judged: list[str] = Field(default=[], description="limits that only a trained network can be held against")
    choose: PlannedChoice | None = Field(default=None, description="what was picked")
    sentences: list[str] = Field(default=[], description="the plan in words")
