"""One module for each engine: ``open_engine(job)`` loads it."""
