"""resps-bench with several clients at once: requests that overlap, their throughput and latency."""
