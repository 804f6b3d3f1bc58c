"""The draft-verify loop: target model, draft trees, sampling, and the statistics of requests."""
