"""Ships a trained network: ONNX and int8 files, measurements, the bundle and its verification on the device.

`convert`, `quantize`, `audit` and `bundle` run where the model is made; `runtime`, `measure` and `verify` travel with it and need
only numpy and onnxruntime.
"""
