"""resps-bench: compares drafts, policies and trees with plain decoding on question sets."""
