"""Blends, calibration, scores with intervals, and thresholds, without torch."""
