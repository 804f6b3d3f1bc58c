"""A model for NVIDIA's Triton Inference Server: its Python backend runs a Decoder and its forks, Triton does the queue and the scaling."""
