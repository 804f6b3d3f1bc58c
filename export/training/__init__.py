"""resps-train: the target in torch, the text that it writes as training data, and the training of an EAGLE-3 draft on it."""
