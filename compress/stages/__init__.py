"""One file for each stage of the workflow. STAGES names them in its order, as `--until` and `--force` do."""

STAGES = ("teacher", "distill", "strip", "convert", "tune", "quantize", "validate", "device", "package", "report")
