"""The stages, in the order of the workflow: teacher, distill, strip, convert, quantize, validate, device, report."""
