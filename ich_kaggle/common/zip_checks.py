"""Zips from elsewhere, see `zip_reader.untrusted`."""

from ich_kaggle.common.zip_reader import untrusted as members  # noqa: F401
