"""The second level: each study read as a sequence of slices."""
