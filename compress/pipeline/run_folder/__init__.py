"""The files of a run folder beside its report: the recipe, and pointers into the cache."""
