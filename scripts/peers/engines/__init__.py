"""One module per engine; its ``open_engine(job)`` loads the engine."""
