"""The commands, by what they work on: a recipe, a run's folder, the package and the machine. Everything heavy is imported inside them."""
