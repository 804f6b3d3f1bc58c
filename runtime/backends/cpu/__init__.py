"""The CPU backend, which runs graphs in ONNX Runtime."""
