"""The command line: arguments, options and exit codes. Everything heavy is imported inside the commands."""
