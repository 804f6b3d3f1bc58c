"""Recorded answers replayed as lanes with arrivals, in simulated time: what policies bring under load."""
