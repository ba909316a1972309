"""The node: from a C-STORE request to a result that is verified at its destination."""

__version__ = "0.1.0"
