"""A whole run: the workflow over a store, the plan before it, the folder after it."""
