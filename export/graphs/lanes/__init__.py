"""The graphs that compute rows of several requests in one pass: attention over pages of the cache, and the writers of target and draft."""
