"""Quantisation-aware training: a torch model that computes what the int8 file will compute."""
