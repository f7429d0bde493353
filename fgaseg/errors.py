"""The errors of fgaseg: each message names the input, what was expected, and what to do."""


class FGASegError(Exception):
    """What all errors of this package derive from; the command line prints its message without a traceback."""


class CheckpointError(FGASegError, RuntimeError):
    """A file of weights or training state that cannot be read or written; the message names the file and a remedy."""


class ConfigError(FGASegError, ValueError):
    """A configuration that cannot be used; the message names where it came from, the key, and what would be right."""


class ProcessLostError(FGASegError, RuntimeError):
    """A process that this one waits for is gone, or has not answered for too long; the message is the backend's."""


class ImageError(FGASegError, ValueError):
    """An image that cannot be used; the message names it, what is wrong and what to do."""


class DataError(FGASegError, ValueError):
    """A data set that cannot be used; the message names the file, what is wrong and what to do."""


class VocabularyError(FGASegError, ValueError):
    """The class names cannot be used; the message says which one and why."""


class EncoderError(FGASegError, ValueError):
    """The encoder that was asked for cannot be built; the message says which part and what to do."""


class TrainingError(FGASegError, RuntimeError):
    """Training cannot go on (a loss that is no number, an impossible set-up); the message says what to try."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is no number: the same training fails again."""


class Interrupted(FGASegError, RuntimeError):
    """Ctrl-C or SIGTERM: the step was finished and saved; the message says how to resume. `signal` is its number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class UnfinishedError(FGASegError, ValueError):
    """What is saved of an unfinished evaluation belongs to another one; the message says in what they differ."""


class ResultError(FGASegError, ValueError):
    """A file of results that cannot be used; the message names it and says what to do."""


class UsageError(FGASegError, ValueError):
    """Options that do not go together or name nothing; the message says what to write instead."""
