"""Training for int8: a torch model that computes what the int8 file will."""
