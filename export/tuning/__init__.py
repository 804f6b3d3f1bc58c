"""Measures an engine on the machine that serves it, and finds the policy that is fastest there."""
