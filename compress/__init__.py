"""compress: image classifiers for the edge, from a recipe to a verified device."""

__version__ = "0.2.0"
