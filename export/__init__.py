"""Ship a trained network: ONNX and int8 files, measurements, the bundle, and its verification on the device.

`graph`, `int8`, `bundle` and `targets` run where the model is made. `runtime` and `verify` travel to the device and
need only numpy and onnxruntime.
"""
