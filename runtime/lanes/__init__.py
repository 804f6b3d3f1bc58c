"""Many requests in one pass: lanes, their trees, the row budget, and the thread that runs them (docs/design.md, section 5)."""
