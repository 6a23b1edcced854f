"""The plain records that stages hand to each other."""
