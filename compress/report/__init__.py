"""The report of a run: `report.html` and `plots/` from `report.json` and the files beside it.

`report.json` holds the keys of the contract (`schema, recipe, status, teacher, student, models, comparisons, device, requirements, seconds,
reused, environment`). Everything below may be added; what is missing or null is left out of the page or shown as not measured.

    started        "2026-01-31T12:00:00Z", UTC
    command        "compress run recipes/mobilenet.yaml"
    data           {label: value}: source, pictures per split, image size; shown as they stand
    student        further keys "method", "shipped_epoch", "top1_validation", "precision", "threads", "images_per_second"
    teacher        further key "reason": why it won, one sentence; it and its candidates: "params", "macs", "seconds", "epochs", "origin"
    classes        [name], in the order of the logits
    warnings       [sentence]
    unreadable     [{"path", "reason"}]
    distill, export, quantize, latency   {setting or finding: value}: shown as they stand
    baseline       {"epochs", "top1_validation", "models": [rows like `models`, role "baseline"], "comparisons": [rows like `comparisons`]}
    distillation   {"gain_points", "ci95", "mcnemar_p", "model", "against", "sentence"}: the student against the baseline
    int8_against_float   {"speedup", "ci95", "sentence"}
    per_class      [{"class", "n", "teacher", "student"}], accuracies as fractions; computed from predictions.npz where missing
    requirements[] further keys "where" (path:line:column of the recipe), "sentence"
    models[]       further keys in `latency_ms`: "p50_ci95" [low, high]; "islands" [name (operator)]: what runs in float inside int8
    comparisons[]  further keys "images", "lost", "gained", "speedup_ci95"

Files beside it, each optional:

    predictions.npz   labels (N,) int, sha256 (N,) str, `logits/<file>` (N, K) float for each model file
    latency.npz       `<file>`: raw samples in ms, (R,) float
    history/*.csv     student.csv, baseline.csv, <candidate>.csv (its "/" as "-"): epoch, lr, one column per loss (the task loss first),
                      top1_validation (fraction), images_per_second
    pictures.npz      what the shipped student gets wrong and the teacher right: images (M, H, W, 3) uint8 RGB, labels (M,), teacher (M,),
                      student (M,) int: the predicted classes; total (): how many there are in all

No time of rendering is written, so equal inputs give equal bytes.
"""

from __future__ import annotations

from compress.report.comparison import compare
from compress.report.html import render

__all__ = ["compare", "render"]
