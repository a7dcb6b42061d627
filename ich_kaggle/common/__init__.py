"""Common to all rooms: labels, windows, metric, tables, paths, files, and the frame of every command."""
