"""Other engines side by side with ours: scripts/bench_peers.py."""
