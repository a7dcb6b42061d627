"""From the bytes of a DICOM file to the cached picture of a slice."""
