"""How long the stages of a run took, and which came from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stages(seconds: Mapping[str, float], reused: tuple[str, ...]) -> dict[str, Any]:
    """Return `seconds`, `reused` and `stages` of report.json, also for a run that `--until` stopped.

    Args:
        seconds: title of each part of a stage ("teacher resnet20"): seconds that it took when it was made.
        reused: titles of the parts that came from the cache. A stage counts as reused when all its parts did.
    """
    total: dict[str, float] = {}
    for title, value in seconds.items():
        stage = title.split(" ")[0]
        total[stage] = round(total.get(stage, 0.0) + value, 3)
    run = {title.split(" ")[0] for title in seconds if title not in reused}
    parts = [{"title": title, "seconds": value, "reused": title in reused} for title, value in seconds.items()]
    return {"seconds": total, "reused": [stage for stage in total if stage not in run], "stages": parts}
