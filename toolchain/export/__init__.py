"""From a checkpoint to ONNX, and the proof that it computes the same."""
