"""Tunes an engine to the machine that serves it: finds the policy that is fastest there."""
