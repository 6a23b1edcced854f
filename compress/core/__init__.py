"""Errors, records, the store and the console, which every other folder uses. Loads no torch."""
