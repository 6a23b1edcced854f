"""`compress analyze`: calibration, features and gradients of a finished run."""
