"""The GPU backends, which run graphs in TensorRT or in ONNX Runtime with its CUDA provider."""
