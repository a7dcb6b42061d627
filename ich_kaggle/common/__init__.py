"""Shared code: labels, CT windows, metric, tables, paths, files and the command line."""
