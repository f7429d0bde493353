"""Runs cases in children of this process, so that one that ends its process, or does not end, is a fault of itself."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence


def faults(count: int, judge: Callable[[int], str], seconds: int = 10) -> Iterator[tuple[int, str]]:
    """(number, what is wrong) for those of the cases 0 to count - 1 of which ``judge`` does not return "".

    One child runs them in turn; where a case ends it by a signal, the next child goes on with the next case.
    """
    first = 0
    while first < count:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            _run(range(first, count), judge, seconds, writer)
        os.close(writer)
        with os.fdopen(reader) as answers:
            lines = answers.read().split("\n")[:-1]
        _, status = os.waitpid(child, 0)
        for number, text in zip(lines[::2], lines[1::2], strict=False):
            if text:
                yield int(number), text
        if status == 0:
            return
        first = int(lines[-1 if len(lines) % 2 else -2])
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status >> 8}"
        yield first, f"ended its process: {ended}"
        first += 1


def _run(numbers: Sequence[int], judge: Callable[[int], str], seconds: int, writer: int) -> None:
    """In the child, which must not return into the code of its parent."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with os.fdopen(writer, "w") as out:
            for number in numbers:
                print(number, file=out, flush=True)
                signal.alarm(seconds)
                print(judge(number).replace("\n", " "), file=out, flush=True)
    except BaseException:
        os._exit(1)
    os._exit(0)
