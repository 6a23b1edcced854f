"""What `keep: faster` decides by a device's times."""

from __future__ import annotations

from typing import Any

import pytest

from compress.verdict import device_requirements

FLOATS = {"file": "s.onnx", "speedup_over": {}}


def answer(**more: Any) -> tuple[dict[str, Any], ...]:
    return FLOATS, {"file": "s.int8.arm64.onnx", **more}


@pytest.mark.parametrize(
    ("ratio", "kept", "said"),
    [
        ([1.3, 1.2, 1.4], True, "it is faster than the float student on ssh://pi (1.30x [1.20, 1.40] its speed)"),
        (
            [1.1, 0.9, 1.3],
            False,
            (
                "int8 is not measurably faster than the float student on ssh://pi (1.10x [0.90, 1.30] its "
                "speed; keep: faster)"
            ),
        ),
        (None, True, "ssh://pi gave no times to judge it by"),
    ],
)
def test_keep_faster_follows_the_devices_times(ratio: list[float] | None, kept: bool, said: str) -> None:
    rows = answer(speedup_over={"s.onnx": ratio} if ratio else {})

    found, sentence = device_requirements.keeps_int8("s.int8.arm64.onnx", "s.onnx", rows, "ssh://pi")

    assert (
        found is kept
        and said in sentence
        and sentence.startswith("s.int8.arm64.onnx ships" if kept else "s.onnx ships instead of")
    )


def test_keep_faster_decides_nothing_by_times_that_others_made_too_long() -> None:
    rows = answer(speedup_over={"s.onnx": [0.5, 0.4, 0.6]}, conditions={"unfit": "others took the core"})
    found, sentence = device_requirements.keeps_int8("s.int8.arm64.onnx", "s.onnx", rows, "ssh://pi")
    assert found and sentence.endswith("its speed on ssh://pi could not be judged (others took the core).")
