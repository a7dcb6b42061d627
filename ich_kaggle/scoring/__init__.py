"""Blends, scores with intervals, and thresholds, without torch."""
