"""resps-bench: policies and trees side by side on question sets."""
