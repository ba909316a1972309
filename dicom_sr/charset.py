"""The character set of an object: that of its source where the source needs more than ASCII, else UTF-8.

A receiver that sent names in its own character set reads them in that one; UTF-8 it may not know. And tools
that compare bytes, such as dcentvfy, then find the names of images and result equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO

from pydicom import DataElement, Dataset, dcmread, dcmwrite
from pydicom.charset import python_encoding

UTF_8 = "ISO_IR 192"
_DEFAULT_REPERTOIRE = "ISO_IR 100"
"""How bytes beyond ASCII are read where no character set is named; so they mean the same under their name."""
_WIDER = {"GBK": "GB18030"}
"""The same bytes under a name that more tools know: dicom3tools has no GBK."""
_PER_FRAME = 0x52009230
_TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}


def character_set(dataset: Dataset, source: Dataset) -> str | list[str]:
    """Choose (0008,0005) of an object whose other elements are complete.

    Parameters
    ----------
    dataset
        The object.
    source
        A header of its source series, as it was read.

    Returns
    -------
    str or list of str
        The source's where the object has characters beyond ASCII and comes back the same from that one;
        otherwise UTF-8 (PS3.3 C.12.1.1.2).
    """
    beyond = [element for element in _texts(dataset) if not str(element.value).isascii()]
    if not beyond:
        return UTF_8
    declared = source.get("SpecificCharacterSet") or _DEFAULT_REPERTOIRE
    names = [declared] if isinstance(declared, str) else [str(name) for name in declared]
    names = [_WIDER.get(name, name) for name in names]
    known = all(name in python_encoding for name in names)
    return (names[0] if len(names) == 1 else names) if known and _survive(beyond, names) else UTF_8


def _texts(dataset: Dataset) -> Iterator[DataElement]:
    # the functional groups of thousands of frames hold no text
    tops = Dataset({e.tag: e for e in dataset if e.tag != _PER_FRAME})
    return (element for element in tops.iterall() if element.VR in _TEXT and not element.is_empty)


def _survive(elements: list[DataElement], names: list[str]) -> bool:
    """Whether the elements are the same after writing and reading."""
    probe = Dataset()
    probe.SpecificCharacterSet = names
    probe.ContentSequence = [Dataset({element.tag: element}) for element in elements]
    buffer = BytesIO()
    with warnings.catch_warnings():
        # pydicom warns and writes a question mark: then it isn't the same
        warnings.simplefilter("ignore")
        dcmwrite(buffer, probe, implicit_vr=False, little_endian=True)
        buffer.seek(0)
        again = dcmread(buffer, force=True)
        read = [item[element.tag] for item, element in zip(again.ContentSequence, elements, strict=True)]
        return all(str(one.value) == str(other.value) for one, other in zip(read, elements, strict=True))
