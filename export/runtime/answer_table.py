"""The answer of `export.verify` as a table.

Standard library only; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

from typing import Any


def table(answer: dict[str, Any]) -> str:
    """Return the answer of `export.verify` as the lines that it prints."""
    host = answer["host"]
    lines = [f"{host['cpu'] or host['architecture']} ({host['isa']}), onnxruntime {answer['onnxruntime']}"]
    lines.append(f"{'model':<32}{'top-1':>16}{'agreement':>11}{'max diff':>11}{'p50 ms':>9}{'MB RAM':>8}  verdict")
    for row in answer["models"]:
        top1 = "not measured" if row["top1"] is None else f"{row['top1']:.1%} of {row['images']}"
        difference = "n/a" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.2g}"
        p50 = "n/a" if row["latency_ms"] is None else f"{row['latency_ms']['p50']:.3f}"
        memory = "n/a" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e6:.0f}"
        verdict = row["note"] or ("ok" if row["ok"] else "WRONG ANSWERS")
        verdict += f"; {row['provider']['sentence']}" if row["provider"] and row["provider"]["nodes"] else ""
        lines.append(
            f"{row['file']:<32}{top1:>16}{row['agreement']:>11.1%}{difference:>11}{p50:>9}{memory:>8}  {verdict}"
        )
    if any(row.get("contaminated") for row in answer["models"]):
        lines.append("other processes were busy while the time was measured: run again on a quiet machine")
    if answer["not_timed"]:
        lines.append(f"time and memory were not measured ({answer['not_timed']})")
    lines += [answer["photos"]["sentence"], f"photo to answer: {answer['photo_to_answer']}", *answer["remarks"]]
    lines += [f"{row['file']}: {row['sustained']['sentence']}" for row in answer["models"] if row["sustained"]]
    if answer["file"]:
        lines.append(f"the file for this machine: {answer['file']}")
    if not any(row["ok"] is not None for row in answer["models"]):
        lines.append("no model here is meant for this machine: nothing was verified")
    return "\n".join(lines)
