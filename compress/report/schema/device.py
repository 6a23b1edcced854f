"""`device` and `named_device`: the answers of the devices that ran the bundle."""

from __future__ import annotations

from pydantic import Field

from compress.report.schema.base import Number, Ratio, ReportPart
from compress.report.schema.measurements import FIRST_RUN, LOAD, MEMORY, SHA256, LatencySummary, SustainedRun


class DeviceConditions(ReportPart):
    """The conditions that a device's times were taken under."""

    threads: int | None = Field(default=None, description="CPU threads of the runtime")
    spinning: bool | None = Field(default=None, description="whether the runtime's threads spin between operators")
    governor: str | None = Field(default=None, description="the clock governor; null: the device does not show it")
    cpu_features: list[str] | None = Field(default=None, description="CPU flags that matter to the kernels")
    rounds: int | None = Field(default=None, description="interleaved rounds")
    attempts: int | None = Field(default=None, description="measurements made until one was undisturbed")
    other_cores: Number | None = Field(
        default=None, description="mean cores that other processes used; null: not known"
    )
    unfit: str | None = Field(
        default=None,
        description="why runs that lost their core could not be left out, so that ratios are doubtful; null: they were",
    )
    cpu_ratios: str | None = Field(
        default=None,
        description="why ratios are those of the CPU time of one thread; null: they are of wall-clock time",
    )
    drift: Number | None = Field(default=None, description="median of the last third of rounds over that of the first")
    interrupted: int | None = Field(
        default=None, description="runs that lost their core to another process and do not count"
    )


class ProviderUse(ReportPart):
    """What ran in the execution provider that was asked for."""

    asked: str | None = Field(default=None, description="the execution provider")
    nodes: int | None = Field(default=None, description="nodes that ran there")
    of: int | None = Field(default=None, description="nodes in all")
    time_share: Number | None = Field(
        default=None, description="share of the nodes' time that was spent there, in [0, 1]; null: no profile"
    )
    elsewhere: dict[str, int] = Field(default={}, description="operator: number of nodes that ran on the CPU")
    sentence: str | None = Field(default=None, description="the same in words")


class DevicePhotos(ReportPart):
    """Whether the device decodes image files as the bundle expects."""

    status: str | None = Field(default=None, description="ok, wrong or not run")
    sentence: str | None = Field(default=None, description="the result in words")
    photos: int | None = Field(default=None, description="number of photos")
    agreement: Number | None = Field(default=None, description="share of the expected predictions, in [0, 1]")
    max_abs_diff: Number | None = Field(default=None, description="largest difference of logits from the expected ones")


class DeviceRow(ReportPart):
    """One file on one device."""

    target: str | None = Field(
        default=None, description="the device, without options, for example ssh://pi@board.local"
    )
    file: str | None = Field(default=None, description="the file's name in the bundle")
    sha256: str | None = Field(default=None, description=SHA256)
    role: str | None = Field(default=None, description="teacher or student")
    precision: str | None = Field(default=None, description="fp32 or int8")
    built_for: str | None = Field(default=None, description="the processors that an int8 file is built for; null: any")
    host: str | None = Field(default=None, description="operating system")
    cpu: str | None = Field(default=None, description="processor")
    isa: str | None = Field(default=None, description="int8 instruction set, for example x86-vnni or arm64")
    cores: int | None = Field(default=None, description="CPU cores")
    memory_bytes: int | None = Field(default=None, description="memory in bytes; null: not known")
    python: str | None = Field(default=None, description="Python version; null: a browser")
    onnxruntime: str | None = Field(default=None, description="onnxruntime version")
    images: int | None = Field(default=None, description="images of the bundle's sample")
    top1: Number | None = Field(
        default=None, description="top-1 on that sample, a fraction in [0, 1]; null: its images are synthetic"
    )
    agreement: Number | None = Field(default=None, description="share of the expected predictions, in [0, 1]")
    max_abs_diff: Number | None = Field(default=None, description="largest difference of logits from the expected ones")
    latency_ms: LatencySummary | None = Field(default=None, description="null: not timed, see `not_timed` and `note`")
    first_run_ms: Number | None = Field(default=None, description=FIRST_RUN)
    load_ms: Number | None = Field(default=None, description=LOAD)
    peak_memory_bytes: int | None = Field(default=None, description=MEMORY)
    speedup_over: dict[str, Ratio] = Field(
        default={}, description="other file: [its latency over this one's, low, high], with the 95 % interval"
    )
    contaminated: bool | None = Field(default=None, description="whether other processes disturbed it; null: not known")
    not_timed: str | None = Field(default=None, description="why the device was not timed; null: it was")
    note: str | None = Field(
        default=None, description="why this file was not judged or not timed; null: nothing to note"
    )
    provider: ProviderUse | None = Field(
        default=None, description="what ran in the execution provider that was asked for; null: the CPU's"
    )
    photo_latency_ms: LatencySummary | None = Field(
        default=None, description="like `latency_ms`, from the bytes of an image file to logits; null: not timed"
    )
    photo_to_answer: str | None = Field(
        default=None,
        description="for the file that fits this device: what was timed from image file to logits, or why nothing was; "
        "null: another file",
    )
    sustained: SustainedRun | None = Field(default=None, description="run without a pause; null: not asked for")
    disturbances: list[str] = Field(default=[], description="why the times are doubtful, one sentence each")
    conditions: DeviceConditions | None = Field(default=None, description="how it was timed; null: not timed")
    remarks: list[str] = Field(
        default=[], description="sentences about the host, for example which WebGPU adapter a browser has"
    )
    photos: DevicePhotos | None = Field(default=None, description="the check of image decoding; null: not run")
    ok: bool | None = Field(
        default=None, description="whether the answers are the expected ones; null: built for another processor"
    )


class NamedDevice(ReportPart):
    """The device that the recipe names, where it is not this host."""

    target: str | None = Field(default=None, description="the device, without options")
    failure: str | None = Field(
        default=None, description="why it gave no answer, or what is wrong with it, one sentence; null: all is well"
    )
