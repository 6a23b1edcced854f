"""What `check`, `verify`, `analyze` and `doctor` do. The command line itself is in `compress/cli`."""
