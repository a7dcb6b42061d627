"""The report app and the static pages."""
