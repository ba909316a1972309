"""Public validators on DICOM objects: what they say, what is waived and why, one table.

`subjects` reads what is to be checked, `programs`, `dcmqi` and `libraries` hold the tools, `waivers` the
accepted messages with their reasons, `survey` runs all of it.
"""
