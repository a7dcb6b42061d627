"""The report app, the page on the data, and figures."""
