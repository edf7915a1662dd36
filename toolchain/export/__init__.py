"""Export to ONNX and TensorRT, and comparison with the original."""
