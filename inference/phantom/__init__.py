"""A synthetic chest CT with asymmetric anatomy and nodules of known truth. No patient is in it.

It serves the demonstration, the tests and the measured figures of the model cards. It is drawn from
geometric shapes: results on it show that a pipeline works, not how it performs on patients.
"""

from inference.phantom.build import Phantom, make_phantom
from inference.phantom.imaging import Kernel
from inference.phantom.nodules import (
    DEFAULT_NODULES,
    Attachment,
    Margin,
    NoduleSpec,
    PhantomNodule,
    random_specs,
)
from inference.phantom.write import write_phantom

__all__ = [
    "DEFAULT_NODULES",
    "Attachment",
    "Kernel",
    "Margin",
    "NoduleSpec",
    "Phantom",
    "PhantomNodule",
    "make_phantom",
    "random_specs",
    "write_phantom",
]
