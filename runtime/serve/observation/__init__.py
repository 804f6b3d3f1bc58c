"""What the server tells about its work: other programs' metric names, traces, the access log, crash reports."""
