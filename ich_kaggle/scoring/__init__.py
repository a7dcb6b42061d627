"""Blends, calibration, scores with intervals, and thresholds: numpy only."""
