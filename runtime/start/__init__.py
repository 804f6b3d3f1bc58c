"""What happens before the first request: warming up, and measuring a machine that the tuning does not know."""
