"""What can go wrong in the node.

::

    NodeError
    ├── ConfigurationError     a setting is wrong: key, value, what would be right
    ├── StaleStateError        somebody else changed the row first (lost lease, cancelled job)
    ├── OutOfSpaceError        the storage reserve is reached; nothing was written
    │   └── ObjectTooLargeError  an object is larger than is taken; nothing was kept
    ├── DiskFailedError        the disk has lost what was written; nothing more is taken
    ├── ThreadEndedError       a part has lost a thread without which it does nothing; it is started anew
    ├── AnalysisFailedError    an attempt died, hung or raised; the job tries again or fails
    ├── SourceSilentError      a source of clinical records gave no answer that can be used
    ├── BackupError            a backup or a restore can't be made here; nothing was changed
    └── UnreadableInstanceError  the data set names no usable study, series or instance
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of the node's own errors."""


class ConfigurationError(NodeError):
    """The configuration can't be used; one line per problem."""


class StaleStateError(NodeError):
    """A compare-and-set found another state than the caller had seen."""


class OutOfSpaceError(NodeError):
    """Less than the reserve is free."""


class ObjectTooLargeError(OutOfSpaceError):
    """One object is larger than the settings allow, whatever is free."""


class DiskFailedError(NodeError):
    """The disk said that it has not kept what was written."""


class ThreadEndedError(NodeError):
    """A thread has ended that a part can't do without."""


class UnreadableInstanceError(NodeError):
    """The identifying attributes of a data set can't be read."""


class BackupError(NodeError):
    """A backup or a restore can't be made here."""


class SourceSilentError(NodeError):
    """A source of clinical records gave no answer that can be used; says why, and names no patient."""


class AnalysisFailedError(NodeError):
    """An attempt at an analysis ended without a result."""
