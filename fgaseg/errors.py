"""The exceptions of fgaseg. Each message names the input, what is wrong with it or what was expected, and a remedy."""

from .visible import visible

LONGEST = 2000  # characters of a line of a message, which may quote what has millions


class FGASegError(Exception):
    """The base class of all exceptions that fgaseg raises itself; the command line prints them without a traceback.

    Most also derive from ValueError (the input is wrong) or RuntimeError (the work cannot go on). Control characters
    of names that a message quotes are escaped, so that no file can paint the terminal it is printed on, and the middle
    of very long lines is left out.
    """

    def __init__(self, *arguments: object):
        super().__init__(*(_shown(one) if isinstance(one, str) else one for one in arguments))


def _shown(message: str) -> str:
    lines = visible(message, lines=True).split("\n")
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 4 :]}" for line in lines
    )


class CheckpointError(FGASegError, RuntimeError):
    """Raised when a file of weights or a training checkpoint cannot be read or written, or does not fit the model."""


class ConfigError(FGASegError, ValueError):
    """Raised for a configuration file, override or keyword with an unknown key, a wrong value or a contradiction.

    The message says where the value came from and, for an unknown key, the nearest known one.
    """


class DataError(FGASegError, ValueError):
    """Raised when a data set as a whole cannot be used: missing folders, photos without labels, labels out of range."""


class EncoderError(FGASegError, ValueError):
    """Raised when the CLIP encoder that a configuration asks for does not exist, cannot be built or does not fit."""


class ExportError(FGASegError, RuntimeError):
    """Raised when a model, or a part of it, cannot be exported as asked for; the message says why."""


class ImageError(FGASegError, ValueError):
    """Raised for one image or label file (or array) that is missing, damaged or of a kind that cannot be used."""


class Interrupted(FGASegError, RuntimeError):
    """Raised after Ctrl-C or SIGTERM, once the current step is finished and saved; the message says how to resume.

    signal  the number of the signal, such as `signal.SIGTERM`
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class PredictionError(FGASegError, FloatingPointError):
    """Raised when a model has no answer for a photo: its scores are NaN, by its weights, its encoder or float16."""


class ProcessLostError(FGASegError, RuntimeError):
    """Raised when another process of the group has ended, or has not answered within the time limit.

    The message is the first line of what the communication backend reported.
    """


class ResultError(FGASegError, ValueError):
    """Raised when a results file of an earlier run is damaged or belongs to a different evaluation."""


class TrainingError(FGASegError, RuntimeError):
    """Raised when training cannot start as configured, or cannot go on."""


class NotFiniteError(TrainingError):
    """Raised when a loss or a gradient is NaN or infinite; repeating the run gives the same result."""


class UnfinishedError(FGASegError, ValueError):
    """Raised when the saved state of an unfinished evaluation belongs to a different one; the message says how."""


class UsageError(FGASegError, ValueError):
    """Raised for arguments of a command that contradict each other, are missing or are out of range."""


class VocabularyError(FGASegError, ValueError):
    """Raised for class names that cannot be used, such as an empty list or an empty name."""
