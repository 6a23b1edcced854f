"""From numbers to a verdict: intervals, requirements, diagnosis. Loads no torch."""
