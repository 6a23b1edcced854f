"""From a YAML file to a checked `Recipe`: positions, every error at once, defaults. Loads no torch."""
