"""Inference backends: ONNX Runtime on the CPU and on a GPU, and TensorRT. base.py defines what they have in common."""
