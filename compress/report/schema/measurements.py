"""What was measured: `models`, `comparisons`, `per_class`, `slices`, `latency`, `requirements`."""

from __future__ import annotations

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart

SHA256 = "sha256 of the file, lower-case hex"
TOP1 = "top-1 accuracy, a fraction in [0, 1]"
FIRST_RUN = "milliseconds of the first run after loading; null: not timed"
LOAD = "milliseconds to load the file; null: not timed"
MEMORY = "peak resident memory in bytes of a process that loads and runs the file; null: cannot be measured there"
GROUPS = "groups of the test images (`data.group`); missing: every image is on its own"
MCNEMAR = "p-value of McNemar's exact test"


class LatencySummary(ReportPart):
    """Latency of one file, one image at a time, in milliseconds."""

    p50: Number | None = Field(default=None, description="median in ms")
    p90: Number | None = Field(default=None, description="90th percentile in ms; null: fewer than 64 runs")
    p99: Number | None = Field(default=None, description="99th percentile in ms; null: fewer than 662 runs")
    runs: int | None = Field(default=None, description="timed runs that count")
    threads: int | None = Field(default=None, description="CPU threads of the runtime")
    batch: int | None = Field(default=None, description="images per run")
    p50_ci95: Interval | None = Field(
        default=None, description="95 % confidence interval of `p50` in ms, by bootstrap over rounds"
    )
    contaminated: bool | None = Field(
        default=None,
        description="in `device[].photo_latency_ms` alone: whether other processes disturbed it; null: not known",
    )


class IslandCause(ReportPart):
    """Why some operators of an int8 file run in float."""

    op: str | None = Field(default=None, description="the operator")
    cause: str | None = Field(default=None, description="why it runs in float")
    count: int | None = Field(default=None, description="number of such nodes")
    nodes: list[str] = Field(default=[], description="their names")


class ModelRow(ReportPart):
    """One measured file."""

    role: str | None = Field(default=None, description="teacher, student or baseline")
    variant: str | None = Field(
        default=None,
        description="static: int8 of the student before it was tuned, for comparison, it does not ship; null otherwise",
    )
    precision: str | None = Field(default=None, description="fp32 or int8")
    file: str | None = Field(default=None, description="the file's name in the run folder")
    sha256: str | None = Field(default=None, description=SHA256)
    bytes: int | None = Field(default=None, description="size in bytes")
    images: int | None = Field(default=None, description="number of test images")
    top1: Number | None = Field(default=None, description=f"{TOP1}, on the test images")
    top1_ci95: Interval | None = Field(default=None, description="Wilson's 95 % confidence interval of `top1`")
    groups: int | None = Field(default=None, description=GROUPS)
    design_effect: Number | None = Field(
        default=None,
        description="how many times as many grouped images are needed as independent ones (Rao and Scott 1992); "
        "`top1_ci95` is Wilson's on the effective number of images; missing: without groups",
    )
    top5: Number | None = Field(
        default=None, description="top-5 accuracy, a fraction in [0, 1]; null: fewer than five classes"
    )
    balanced_accuracy: Number | None = Field(
        default=None, description="mean of the classes' recalls, a fraction in [0, 1]"
    )
    balanced_accuracy_ci95: Interval | None = Field(
        default=None, description="its 95 % confidence interval, by bootstrap within classes"
    )
    macro_f1: Number | None = Field(default=None, description="mean of the classes' F1, a fraction in [0, 1]")
    macro_f1_ci95: Interval | None = Field(
        default=None, description="its 95 % confidence interval, by bootstrap within classes"
    )
    agreement_with_teacher: Number | None = Field(
        default=None, description="share of test images with the teacher's prediction, in [0, 1]"
    )
    max_abs_diff_from_torch: Number | None = Field(
        default=None,
        description="largest difference of logits between onnxruntime and torch; null: int8, or no torch network",
    )
    latency_ms: LatencySummary | None = Field(
        default=None, description="of this host; null: not timed here, see `note`"
    )
    first_run_ms: Number | None = Field(default=None, description=FIRST_RUN)
    load_ms: Number | None = Field(default=None, description=LOAD)
    peak_memory_bytes: int | None = Field(default=None, description=MEMORY)
    int8_mac_share: Number | None = Field(
        default=None,
        description="share of multiply-accumulates in integer kernels, in [0, 1]; null: not known on this host",
    )
    islands: list[str] | None = Field(
        default=None,
        description="`name (operator)` of what runs in float inside int8; null: a float file, or not known",
    )
    island_causes: list[IslandCause] | None = Field(
        default=None, description="the same by operator and cause, most frequent first; null as for `islands`"
    )
    requantised: list[str] | None = Field(
        default=None,
        description="layers that are float in the file and run in integers all the same; null as for `islands`",
    )
    target: str | None = Field(default=None, description="the processors that an int8 file is built for; null: any")
    note: str | None = Field(default=None, description="why the file was not timed here; null: it was")
    photo_latency_ms: LatencySummary | None = Field(
        default=None, description="like `latency_ms`, from the bytes of an image file to logits; null: not timed"
    )


class ComparisonRow(ReportPart):
    """Two files on the same test images."""

    model: str | None = Field(default=None, description="the file that is judged")
    against: str | None = Field(default=None, description="the reference")
    top1_drop_points: Number | None = Field(
        default=None, description="percentage points that `model` is below `against`; negative: above"
    )
    top1_drop_ci95: Interval | None = Field(
        default=None, description="its 95 % confidence interval, paired (Tango 1998)"
    )
    mcnemar_p: Number | None = Field(default=None, description=MCNEMAR)
    groups: int | None = Field(default=None, description=GROUPS)
    p: Number | None = Field(
        default=None, description="p-value of `test`, which `top1_drop_ci95` follows too; missing: without groups"
    )
    test: str | None = Field(default=None, description="the test on groups; missing: without groups")
    images: int | None = Field(default=None, description="number of test images")
    lost: int | None = Field(default=None, description="images that only `against` gets right")
    gained: int | None = Field(default=None, description="images that only `model` gets right")
    speedup_p50: Number | None = Field(
        default=None,
        description="latency of `against` over that of `model`, median of paired rounds; null: one was not timed here",
    )
    speedup_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `speedup_p50`")
    size_ratio: Number | None = Field(default=None, description="bytes of `against` over bytes of `model`")


class ClassRow(ReportPart):
    """One class: the shipped student against the teacher, and against the float student (keys with `float_`)."""

    name: str | None = Field(default=None, alias="class", description="the class")
    teacher: Number | None = Field(default=None, description="the teacher's top-1, a fraction; null: no test image")
    student: Number | None = Field(
        default=None, description="the shipped student's top-1, which is the class's recall; null: no test image"
    )
    student_ci95: Interval | None = Field(
        default=None, description="Wilson's 95 % confidence interval of `student`; missing: no test image"
    )
    right: int | None = Field(
        default=None, description="test images of the class that the shipped student gets right; missing: no test image"
    )
    f1: Number | None = Field(
        default=None,
        description="the shipped student's F1 of the class, the harmonic mean of precision and recall; missing: no "
        "test image",
    )
    n: int | None = Field(default=None, description="test images of the class")
    lost: int | None = Field(default=None, description="images that only the teacher gets right")
    gained: int | None = Field(default=None, description="images that only the student gets right")
    drop_points: Number | None = Field(default=None, description="percentage points below the teacher")
    drop_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `drop_points`")
    mcnemar_p: Number | None = Field(default=None, description=MCNEMAR)
    groups: int | None = Field(default=None, description=GROUPS)
    p: Number | None = Field(default=None, description="p-value of the test on groups, which decides about `worse`")
    float_top1: Number | None = Field(
        default=None, alias="float", description="the float student's top-1; missing where it is the file that ships"
    )
    float_lost: int | None = Field(default=None, description="as `lost`, against the float student")
    float_gained: int | None = Field(default=None, description="as `gained`, against the float student")
    float_drop_points: Number | None = Field(default=None, description="as `drop_points`, against the float student")
    float_drop_ci95: Interval | None = Field(default=None, description="as `drop_ci95`, against the float student")
    float_mcnemar_p: Number | None = Field(default=None, description="as `mcnemar_p`, against the float student")
    worse: bool | None = Field(
        default=None,
        description="whether the drop is beyond chance: p below 5 % after Holm's correction for the number of classes",
    )
    float_worse: bool | None = Field(default=None, description="as `worse`, against the float student")


class SliceRow(ReportPart):
    """The shipped student where the teacher's first answer is least ahead of its second."""

    slice: str | None = Field(default=None, description="the slice's name")
    share: Number | None = Field(default=None, description="share of the test images, in (0, 1]")
    margin_below: Number | None = Field(
        default=None, description="the teacher's largest top-1 margin in the slice, a difference of probabilities"
    )
    model: str | None = Field(default=None, description="the file that is judged")
    against: str | None = Field(default=None, description="the reference")
    top1: Number | None = Field(default=None, description=f"{TOP1}, of `model`")
    reference: Number | None = Field(default=None, description=f"{TOP1}, of `against`")
    n: int | None = Field(default=None, description="test images of the slice")
    lost: int | None = Field(default=None, description="images that only `against` gets right")
    gained: int | None = Field(default=None, description="images that only `model` gets right")
    drop_points: Number | None = Field(default=None, description="percentage points that `model` is below `against`")
    drop_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `drop_points`")
    mcnemar_p: Number | None = Field(default=None, description=MCNEMAR)


class SustainedRun(ReportPart):
    """One file run without a pause."""

    file: str | None = Field(default=None, description="the file; missing in `device` rows, which name it themselves")
    seconds: Number | None = Field(default=None, description="how long it ran, in seconds")
    window_seconds: Number | None = Field(
        default=None, description="length of the first and the last window in seconds"
    )
    runs: int | None = Field(default=None, description="runs in all")
    threads: int | None = Field(default=None, description="CPU threads of the runtime")
    first_p50_ms: Number | None = Field(default=None, description="median in ms in the first window")
    last_p50_ms: Number | None = Field(default=None, description="median in ms in the last window")
    ratio: Number | None = Field(default=None, description="`last_p50_ms` over `first_p50_ms`")
    throttled: int | None = Field(
        default=None, description="how often the processor throttled; null: the host does not count"
    )
    other_cores: Number | None = Field(
        default=None, description="mean cores that other processes used; null: not known"
    )
    contaminated: bool | None = Field(default=None, description="whether other processes disturbed it; null: not known")
    temperature_c_first: Number | None = Field(default=None, description="degrees Celsius before; null: not shown")
    temperature_c_last: Number | None = Field(default=None, description="degrees Celsius after; null: not shown")
    clock_mhz_first: Number | None = Field(default=None, description="clock in MHz before; null: not shown")
    clock_mhz_last: Number | None = Field(default=None, description="clock in MHz after; null: not shown")
    slices_ms: list[Number] = Field(default=[], description="medians in ms of equal stretches of the run")
    sentence: str | None = Field(default=None, description="what happened, one sentence")


class PhotoTiming(ReportPart):
    """How the time from the bytes of an image file to logits was measured."""

    pictures: str | None = Field(default=None, description="which image files were timed")
    decoder: str | None = Field(default=None, description="what decoded them")
    contaminated: bool | None = Field(default=None, description="whether other processes disturbed it; null: not known")
    other_cores: Number | None = Field(
        default=None, description="mean cores that other processes used; null: not known"
    )
    disturbances: list[str] = Field(default=[], description="why the times are doubtful, one sentence each")
    interrupted: dict[str, int] = Field(
        default={}, description="file: runs that lost their core to another process and do not count"
    )
    unfit: str | None = Field(default=None, description="why interrupted runs could not be left out; null: they were")
    attempts: int | None = Field(default=None, description="measurements made until one was undisturbed, at most 3")


class TimingSection(ReportPart):
    """How latency was measured on this host, all files in the same interleaved rounds."""

    contaminated: bool | None = Field(default=None, description="whether other processes disturbed it; null: not known")
    other_cores: Number | None = Field(
        default=None, description="mean cores that other processes used; null: not known"
    )
    round_other_cores: list[Number | None] = Field(
        default=[], description="`other_cores` of each round; null: too short to tell"
    )
    drift: dict[str, Number] = Field(
        default={}, description="file: median of its last third of rounds over that of its first"
    )
    disturbances: list[str] = Field(default=[], description="why absolute times are doubtful, one sentence each")
    notes: list[str] = Field(default=[], description="what else a reader should know, one sentence each")
    interrupted: dict[str, int] = Field(
        default={}, description="file: runs that lost their core to another process and do not count"
    )
    unfit: str | None = Field(
        default=None,
        description="why interrupted runs could not be left out, so that ratios are doubtful too; null: they were",
    )
    cpu_ratios: str | None = Field(
        default=None,
        description="why ratios are those of the CPU time of one thread; null: they are of wall-clock time",
    )
    attempts: int | None = Field(default=None, description="measurements made until one was undisturbed, at most 3")
    rounds: int | None = Field(default=None, description="interleaved rounds")
    threads: int | None = Field(default=None, description="CPU threads of the runtime")
    spinning: bool | None = Field(default=None, description="whether the runtime's threads spin between operators")
    governor: str | None = Field(default=None, description="the clock governor; null: the host does not show it")
    cpu_features: list[str] | None = Field(default=None, description="CPU flags that matter to the kernels")
    sha256: dict[str, str] = Field(default={}, description="file: sha256 of the bytes that were timed")
    photo: PhotoTiming | None = Field(default=None, description="from the bytes of an image file to logits")
    sustained: SustainedRun | None = Field(
        default=None, description="the file that ships, run without a pause; null: `validate.sustained_seconds` is 0"
    )
