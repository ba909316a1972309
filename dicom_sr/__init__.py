"""DICOM results: SEG, structured report, key images, and the checks that they can be read back."""
