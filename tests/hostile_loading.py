"""Opens models that nobody should trust, one after the other, in a process of its own: python hostile_loading.py LIST.

LIST has one folder a line. Prints a JSON line for each: what happened, how long it took, which files outside of the
folder were opened, and whom it tried to reach. Memory is limited, so that a bomb is an error here and not of the host.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

SECONDS, MEMORY = 20, 2 * 2**30
OURS = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix), str(Path(__file__).resolve().parents[1]),
        "/proc/", "/sys/", "/dev/", "/usr/", "/etc/ld.so", "/etc/localtime")  # fmt: skip
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "subprocess.Popen",
           "os.system", "urllib.Request")  # fmt: skip
seen: dict[str, list[str]] = {"opened": [], "reached": []}
folder = ""


def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((*OURS, folder)) or path.endswith("secret"):
            seen["opened"].append(path)
    elif event in NETWORK:
        seen["reached"].append(f"{event} {arguments[:2]!r}"[:200])


def attempt(load, path):
    global folder
    folder = os.path.realpath(path)
    for found in seen.values():
        found.clear()
    began = time.monotonic()
    signal.alarm(SECONDS)
    try:
        load(path)
        outcome, text = "loaded", ""
    except BaseException as error:
        kind = type(error)
        outcome = "refused" if any(one.__name__ == "FGASegError" for one in kind.__mro__) else f"{kind.__name__}"
        text = str(error)
    finally:
        signal.alarm(0)
    return {"outcome": outcome, "text": text[:3000], "seconds": time.monotonic() - began, **seen}


def main():
    import fgaseg

    paths = Path(sys.argv[1]).read_text().splitlines()
    fgaseg.load(paths[0])  # a sound one first: what is imported late is imported now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(watch)
    for path in paths:
        print(json.dumps(attempt(fgaseg.load, path)), flush=True)


if __name__ == "__main__":
    main()
