"""Helpers that more than one stage needs."""
