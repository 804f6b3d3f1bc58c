"""resps-bench --doctor: what is wrong with a target and its draft."""
