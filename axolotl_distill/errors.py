"""The errors a user can meet, one root for all.

Every message says what was seen, what was expected, which key or file is meant and what to do
next. Each class also inherits the standard exception a caller would reach for first.
"""


class DistillError(Exception):
    """Root of every error that axolotl-distill raises on purpose.

    report  what a command's --json prints although it failed
    """

    report: dict[str, object] | None = None


class ConfigError(DistillError, ValueError):
    """The YAML asks for something that cannot be done."""


class StoreError(DistillError, ValueError):
    """A teacher store cannot serve what is asked of it."""


class StoreMissingError(StoreError, FileNotFoundError):
    """A store, or a file that its manifest names, is not there."""


class StoreCorruptError(StoreError):
    """A file of a store is not what the manifest says it is."""


class RemoteError(StoreError, ConnectionError):
    """A store at an address cannot be reached, read or written."""


class TokenizerMismatchError(StoreError):
    """Teacher and student do not read token ids the same way."""


class CaptureError(DistillError, RuntimeError):
    """Capturing a teacher's distributions cannot go on."""


class ServerError(DistillError, ConnectionError):
    """A model server refuses, or does not answer usably however often it is asked."""


class TermsError(DistillError, PermissionError):
    """The teacher's licence or terms do not allow its output to train a model."""


class TrajectoryError(DistillError, ValueError):
    """A trajectory file, or a row of it, cannot serve what is asked of it."""


class UnreadableError(DistillError, ValueError):
    """A file of rows, or a row of it, cannot be read."""


class GenerateError(DistillError, RuntimeError):
    """Generating trajectories cannot go on."""


class FilterError(DistillError, RuntimeError):
    """Filtering trajectories cannot go on."""


class CheckpointError(DistillError, ValueError):
    """A checkpoint cannot be cut or tempered."""


class NotFiniteError(DistillError, FloatingPointError):
    """A loss or a gradient of the training is NaN or infinite."""
