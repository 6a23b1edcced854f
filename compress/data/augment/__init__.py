"""Training views: crops, flips and distortions as functions of (image, view)."""
