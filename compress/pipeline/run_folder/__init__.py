"""What a run folder keeps beside its report: the recipe and pointers into the cache."""
