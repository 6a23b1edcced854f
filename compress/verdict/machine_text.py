"""How a sentence names the machine that its times are of."""

from __future__ import annotations

INSTRUCTIONS = {"x86-vnni": " with VNNI", "x86-avx2": " with AVX2", "x86": " without AVX2"}


def machine_text(cpu: str | None, isa: str | None) -> str:
    """Return a machine's processor and what decides about int8 there, such as `AMD EPYC with VNNI`."""
    name = " ".join((cpu or "").replace("(R)", "").replace("(TM)", "").replace(" Processor", "").split())
    if not name or name == isa:
        return f"{isa} machine" if isa else "machine"
    return name + INSTRUCTIONS.get(isa or "", f" ({isa})" if isa else "")
