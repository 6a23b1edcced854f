"""Ship a trained network: ONNX and int8 files, measurements, the bundle, and its verification on the device.

`graph`, `int8`, `bundle` and `targets` run where the model is made. `verify` and `runtime` are copied into every bundle
and need only numpy and onnxruntime.
"""
