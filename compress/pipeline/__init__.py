"""A whole run: the workflow over a store, the plan before it, and the run folder."""
