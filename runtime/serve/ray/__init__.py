"""The server on several machines, by Ray Serve: a front passes each request to a replica, and Ray places, counts and replaces replicas."""
