"""Plan a recipe before any training: export, quantise and time networks with random weights, and judge the limits.

`run` is `compress plan`; `choose` is how `student.choose` picks. Both return plain values (key `plan` of report.json).
Every network is cached alone, so that a second plan, and a run after a plan, measure nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.core.errors import StageError, UsageError
from compress.core.files import write_json
from compress.models import catalog
from compress.pipeline.plan import candidates, limits, table
from compress.pipeline.plan.alternatives import FIND_ALTERNATIVES
from compress.pipeline.plan.candidates import PlanCandidate
from compress.pipeline.plan.context import PlanContext
from compress.pipeline.plan.measure import Row, measure
from compress.pipeline.plan.table import name_of
from compress.recipe.schema import Choice, Choose, Student
from export.runtime import isa, runs_on


def run(plan: PlanContext, *, neighbours: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure the teachers, the student or those that `choose` picks from, and other networks.

    Args:
        plan: What the networks share.
        neighbours: At most so many other networks.
        report: Called with each line of the table, as it is known.

    Returns:
        The plan as plain values.
    """
    own, choice = plan.recipe.student.networks, plan.recipe.student.choose
    if choice is not None and not plan.recipe.device.distant and not runs_on(plan.target, isa()):
        raise UsageError(
            f"student.choose: an int8 file for {plan.target} cannot be timed on this machine ({isa()}); "
            "name a network in student.model instead"
        )
    others = _neighbours(plan, own[0], neighbours) if choice is None else []
    role = "choice" if choice else "student"
    rows = measure(
        plan, [*(candidates.student(plan.recipe, role, one, plan.input_spec) for one in own), *others], report
    )
    mine = largest(rows, choice.max_latency_ms) if choice else next(row for row in rows if row["role"] == "student")
    requirements = mine["requirements"] if mine else []
    status = "failed" if mine is None else limits.status(requirements)
    content = {
        "schema": 1,
        "status": status,
        "student": mine["name"] if mine else None,
        "image_size": plan.size,
        "classes": plan.classes,
        "pictures": "training pictures" if plan.images else "noise",
        "threads": plan.recipe.validate_.threads,
        "device": plan.recipe.device.name,
        "host": dict(plan.host),
        "networks": rows,
        "requirements": requirements,
        "not_judged": [
            name
            for name, limit in plan.recipe.require
            if limit is not None and name not in limits.judged(plan.recipe, plan.base)
        ],
        "choose": _chosen(choice, rows, mine, table.place(plan.recipe.device.name)) if choice else None,
    }
    return {**content, "sentences": list(table.sentences(content))}


def choose(plan: PlanContext, *, report: Callable[[str], None]) -> tuple[Choice, dict[str, Any]]:
    """Return the network that `student.choose` picks, and the plan. Raises StageError if no network is fast enough."""
    content = run(plan, neighbours=0, report=report)
    if content["choose"]["chosen"] is None:
        raise StageError(content["choose"]["sentence"])
    names = [name_of(one.model, one.width) for one in plan.recipe.student.networks]
    return plan.recipe.student.networks[names.index(content["choose"]["chosen"])], content


def keep(content: dict[str, Any], name: str, student: Student, artifacts: Path) -> dict[str, Any]:
    """Write the plan to plans/<recipe>.json with the student's section, and return it.

    Args:
        content: The plan.
        name: The recipe's name.
        student: The section that was planned for.
        artifacts: The artifacts folder.
    """
    content = {"recipe": name, "asked": student.model_dump(mode="json", by_alias=True), **content}
    path = artifacts / "plans" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return content


def largest(rows: list[Row], budget_ms: float) -> Row | None:
    """Return the largest choice, by MACs and then parameters, whose interval of the median lies within the budget."""
    fitting = [
        row for row in rows if row["role"] == "choice" and row[row["ships"]]["latency_ms"]["p50_ci95"][1] <= budget_ms
    ]
    return max(fitting, key=lambda row: (row["macs"], row["params"]), default=None)


def _chosen(choice: Choose, rows: list[Row], chosen: Row | None, where: str) -> dict[str, Any]:
    listed = [row for row in rows if row["role"] == "choice"]
    sentence = table.choice(listed, chosen, choice.max_latency_ms, where)
    return {"max_latency_ms": choice.max_latency_ms, "chosen": chosen["name"] if chosen else None, "sentence": sentence}


def _neighbours(plan: PlanContext, student: Choice, most: int) -> list[PlanCandidate]:
    """Return other networks that the recipe could name, as its method would ship them, without the teachers."""
    teachers = tuple(name_of(one.model, one.width) for one in plan.recipe.teacher.candidates if one.onnx is None)
    found = plan.store.run(
        FIND_ALTERNATIVES,
        student,
        size=plan.size,
        classes=plan.classes,
        most=most,
        without=teachers,
        known=catalog.names(),
    )
    others = (
        candidates.neighbour(plan.recipe, Choice(model=one.model, width=one.width), plan.input_spec)
        for one in found.networks
    )
    return [one for one in others if one is not None]
