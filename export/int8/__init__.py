"""Int8: calibration, quantisation, search, training for int8."""
