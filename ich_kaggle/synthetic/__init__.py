"""Phantoms: head CT with hemorrhages, made by formula and written as DICOM."""
