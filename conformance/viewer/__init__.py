"""The node's results in a real viewer: OHIF over Orthanc's DICOMweb, driven in headless Chromium."""
