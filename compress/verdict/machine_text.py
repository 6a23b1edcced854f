"""How a sentence names the machine that its times are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INSTRUCTIONS = {"x86-vnni": " with VNNI", "x86-avx2": " with AVX2", "x86": " without AVX2"}


def machine_text(cpu: str | None, isa: str | None) -> str:
    """Return a machine's processor and what decides about int8 there, such as `AMD EPYC with VNNI`."""
    name = " ".join((cpu or "").replace("(R)", "").replace("(TM)", "").replace(" Processor", "").split())
    if not name or name == isa:
        return f"{isa} machine" if isa else "machine"
    return name + INSTRUCTIONS.get(isa or "", f" ({isa})" if isa else "")


def on_this_machine(environment: Mapping[str, Any]) -> str:
    """Return where this host's times were measured, as a sentence says it. `environment`: that of report.json."""
    return f"on this {machine_text(environment.get('cpu'), environment.get('isa'))}, not on another board"
