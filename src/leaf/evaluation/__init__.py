"""Decode predictions, score them with intervals, and compare systems."""
