"""Every error that mammoray raises on purpose.

::

    MammorayError
    ├── ConfigError        a setting, a flag or a TOML file
    ├── StorageError       a path or URI that cannot be reached or listed
    ├── CatalogError       the CSV, the folder tree, or how they fit together
    │   └── LabelError     a density label that cannot be read
    ├── SplitError         a split that cannot be made, or no longer fits the data
    │   └── LeakError      a patient on both sides of a split
    ├── DecodeError        one image file
    ├── IngestError        the decoded cache, or too many files that did not decode
    ├── ModelError         an architecture or weights
    │   └── CheckpointError  a checkpoint that does not fit
    ├── TrainError         a training run that cannot go on
    │   └── InterruptedRunError  a training run that was told to stop
    ├── StudyError         the storage of a search
    ├── ClusterError       the Ray cluster: address or resources
    └── RunFolderError     the output folder

All have the same four fields, so that none can forget to say what to do. They cross process borders: the fields go
to ``Exception.__init__`` as they are, and the sentence is built in ``__str__``, because an exception that formats its
message in ``__init__`` does not survive pickling.
"""

from __future__ import annotations


class MammorayError(Exception):
    """Base class: what was read, what was expected, what was found, what to do.

    Parameters
    ----------
    where : str
        The file, row, DICOM tag, setting or address at fault. Never a patient's name or birth date.
    expected : str
        What a correct input would have been.
    found : str
        What was there instead.
    remedy : str
        What the reader can do about it, as an imperative sentence.

    Examples
    --------
    >>> print(ConfigError("--folds", "an integer of at least 3", "2", "Give 3 or more folds."))
    --folds: expected an integer of at least 3, found 2. Give 3 or more folds.
    """

    def __init__(self, where: str, expected: str, found: str, remedy: str) -> None:
        super().__init__(where, expected, found, remedy)
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.remedy}"


class ConfigError(MammorayError):
    """A setting that is out of range, unknown, or contradicts another."""


class StorageError(MammorayError):
    """A path or a URI that cannot be reached, listed or read."""


class CatalogError(MammorayError):
    """The CSV or the folder tree cannot be read, or they do not fit together."""


class LabelError(CatalogError):
    """A density label in none of the accepted forms."""


class SplitError(MammorayError):
    """The split asked for cannot be made from these patients."""


class LeakError(SplitError):
    """A patient stands on more than one side of a split; ``found`` names the patients."""


class DecodeError(MammorayError):
    """One file cannot become an image."""


class IngestError(MammorayError):
    """The decoded cache cannot be built or read."""


class ModelError(MammorayError):
    """An architecture that does not exist, or weights that cannot be had."""


class CheckpointError(ModelError):
    """A checkpoint that does not fit what it is loaded into."""


class TrainError(MammorayError):
    """A training run that cannot start or cannot go on."""


class InterruptedRunError(TrainError):
    """A training run was told to stop, and has made a checkpoint."""


class StudyError(MammorayError):
    """The storage of a search, or what it holds."""


class ClusterError(MammorayError):
    """A Ray cluster that cannot be reached, or has too little room."""


class RunFolderError(MammorayError):
    """The output folder holds something else, or cannot be written."""
