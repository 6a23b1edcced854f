"""`requirements` in report.json: what was required, and the verdict."""

from __future__ import annotations

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart
from compress.report.schema.measurements import SHA256
from compress.verdict.judgement import Verdict


class RequirementRow(ReportPart):
    """One limit of the recipe, held against one file."""

    name: str | None = Field(default=None, description="the key of `require`")
    target: str | None = Field(default=None, description="the device that it was judged on; local: this host")
    file: str | None = Field(default=None, description="the file that was judged")
    limit: Number | None = Field(default=None, description="the limit, in the unit of the recipe's key")
    value: Number | None = Field(default=None, description="the measured value, in the same unit; null: not measured")
    ci95: Interval | None = Field(
        default=None, description="its 95 % confidence interval; null: exact, or not measured"
    )
    verdict: Verdict = Field(
        default="not judged",
        description="passed: met, the whole interval is on the right side; failed: the whole interval is on the wrong "
        "side; undecided: the interval contains the limit; not judged: the value was not measured",
    )
    where: str | None = Field(default=None, description="path:line:column of the limit in the recipe; empty: not known")
    sentence: str | None = Field(default=None, description="the judgement in words")
    sha256: str | None = Field(default=None, description=SHA256)
    precision: str | None = Field(default=None, description="precision of the file: fp32 or int8")
    class_name: str | None = Field(default=None, description="the class that the limit is on; null: no single one")
