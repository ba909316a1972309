"""The template of the draft narrative that a case uses: the site's, or the built-in one with a warning."""

from __future__ import annotations

import logging
from pathlib import Path

from dicom_sr.template import BUILT_IN, Template, TemplateError, read_template

_log = logging.getLogger(__name__)
_SHOWN = 300
"""Characters of what is wrong."""


def template_or_built_in(path: Path | None) -> tuple[Template, tuple[str, ...]]:
    """Read the site's template; a broken one never fails a study.

    Returns
    -------
    Template, tuple of str
        And the warning for the result where the site's can't be used.
    """
    if path is None:
        return BUILT_IN, ()
    try:
        return read_template(path), ()
    except TemplateError as error:
        _log.warning("report template %s can't be used, the built-in one is: %s", path, error)
        reason = str(error)
        words = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]} ..."
        return BUILT_IN, (f"The site's report template could not be used, so the built-in one was: {words}.",)
