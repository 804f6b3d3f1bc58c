"""llama.cpp's HTTP server, from the package xllamacpp, in whose environment it runs: ``llama_server.py MODEL.gguf PORT THREADS LANES``."""

from __future__ import annotations

import sys
import threading

CONTEXT = 2048  # tokens of a lane


def main(model: str, port: int, threads: int, lanes: int) -> None:
    """Serve until the process is ended."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_parallel, params.n_ctx = model, port, lanes, lanes * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)  # returns when it listens
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
