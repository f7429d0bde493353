"""Images at web addresses, fetched into memory."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from ..errors import ImageError

LARGEST = 200_000_000  # bytes of a file
TIMEOUT, DEADLINE = 30.0, 300.0  # seconds without an answer, and of a whole file
_CHUNK = 1 << 20


class NamedBytes(io.BytesIO):
    """The content of a file, under the name that messages give it."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def is_address(text: str) -> bool:
    """Whether a text is a web address, http or https, instead of a path."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def fetch(address: str) -> NamedBytes:
    """The file at a web address. Raises ImageError naming the address: no answer, an error, more than 200 MB."""
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        request = urllib.request.Request(quoted, headers={"User-Agent": "fgaseg", "Accept": "image/*,*/*"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return NamedBytes(_read(answer, address), address)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{address}: the server answers {error.code} ({error.reason}): check the address") from error
    except TimeoutError as error:
        raise ImageError(f"{address}: no answer within {TIMEOUT:.0f} seconds: try again later") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ImageError(f"{address}: cannot be fetched ({reason}): check the address and the connection") from error


def _read(answer: http.client.HTTPResponse, address: str) -> bytes:
    started, parts, size = time.monotonic(), [], 0
    while part := answer.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise ImageError(f"{address}: is larger than {LARGEST // 10**6} MB: fetch it yourself and make it smaller")
        if time.monotonic() - started > DEADLINE:
            raise ImageError(f"{address}: takes more than {DEADLINE:.0f} seconds: fetch it yourself")
    return b"".join(parts)
