"""A synthetic chest CT with asymmetric anatomy and nodules of known truth. No patient is in it.

It serves the demonstration, the tests and the measured figures of the model cards. It is drawn from
geometric shapes: results on it show that a pipeline works, not how it performs on patients.
"""

from inference.phantom.build import Phantom, make_phantom
from inference.phantom.dates import DEFAULT_COURSES, Course, TwoDates, grown
from inference.phantom.imaging import Kernel, SliceProfile
from inference.phantom.motion import Motion, lung_ends
from inference.phantom.specs import (
    DEFAULT_NODULES,
    Attachment,
    Calcification,
    Content,
    Margin,
    NoduleSpec,
    PhantomNodule,
    random_specs,
)
from inference.phantom.structures import PhantomStructure, StructureKind, StructureSpec, random_structures
from inference.phantom.write import write_phantom

__all__ = [
    "DEFAULT_COURSES",
    "DEFAULT_NODULES",
    "Attachment",
    "Calcification",
    "Content",
    "Course",
    "Kernel",
    "Margin",
    "Motion",
    "NoduleSpec",
    "Phantom",
    "PhantomNodule",
    "PhantomStructure",
    "SliceProfile",
    "StructureKind",
    "StructureSpec",
    "TwoDates",
    "grown",
    "lung_ends",
    "make_phantom",
    "random_specs",
    "random_structures",
    "write_phantom",
]
