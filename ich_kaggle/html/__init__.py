"""The report app, and the page on the data."""
