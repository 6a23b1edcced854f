"""The stages, in the order of the workflow."""

STAGES = ("teacher", "distill", "strip", "convert", "tune", "quantize", "validate", "device", "package", "report")
