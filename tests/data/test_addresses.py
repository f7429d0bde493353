"""Images at web addresses: what is asked for, what comes back, and what a bad answer is called."""

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from fgaseg.data import addresses, read_image
from fgaseg.data.addresses import fetch, is_address
from fgaseg.errors import ImageError


@pytest.fixture
def server():
    """Answers with `content`, or with the status that a path ends in; `asked` holds paths and headers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((self.path, self.headers))
            if self.path.endswith("410"):
                self.send_error(410)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.asked, made.content, made.url = [], b"", f"http://127.0.0.1:{made.server_port}"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_addresses_are_told_from_paths():
    assert all(map(is_address, ("http://x.org/a.png", "https://x.org", "HTTPS://X.ORG/A")))
    assert not any(map(is_address, ("photos/http://x.org", "ftp://x.org/a.png", "http:/x.org", "a.png", "")))


def test_a_file_is_fetched_under_its_address(server):
    server.content = bytes(range(256)) * 8200  # two pieces and a bit
    address = f"{server.url}/a b/ä.png?size=1&x=[2]"
    file = fetch(address)
    assert file.read() == server.content and file.name == address
    [(path, headers)] = server.asked
    assert path == "/a%20b/%C3%A4.png?size=1&x=[2]"
    assert headers["User-Agent"] == "fgaseg" and headers["Accept"].startswith("image/")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture.save(made := io.BytesIO(), "PNG")
    server.content = made.getvalue()
    np.testing.assert_array_equal(np.asarray(read_image(server.url)), np.asarray(picture))


def test_a_bad_answer_names_the_address(server, monkeypatch):
    with pytest.raises(ImageError, match=rf"{server.url}/410: the server answers 410 \(Gone\): check the address"):
        fetch(f"{server.url}/410")
    server.content = bytes(3_000_000)
    monkeypatch.setattr(addresses, "LARGEST", 3_000_000)
    assert len(fetch(server.url).read()) == 3_000_000
    server.content += b"x"
    with pytest.raises(ImageError, match=f"{server.url}: is larger than 3 MB: fetch it yourself and make it smaller"):
        fetch(server.url)
    monkeypatch.setattr(addresses, "DEADLINE", 0.0)
    with pytest.raises(ImageError, match=f"{server.url}: takes more than 0 seconds: fetch it yourself"):
        fetch(server.url)
    with pytest.raises(ImageError, match=r"http://127\.0\.0\.1:1/a: cannot be fetched \(.*refused.*\): check the addr"):
        fetch("http://127.0.0.1:1/a")
    with pytest.raises(ImageError, match="http://: cannot be fetched"):
        fetch("http://")


def test_a_photo_may_have_200_megabytes_and_take_five_minutes(monkeypatch):
    waited = []

    def urlopen(request, timeout):
        waited.append(timeout)
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(ImageError, match="x.org: no answer within 30 seconds: try again later"):
        fetch("http://x.org")
    assert waited == [30] and addresses.DEADLINE == 300 and addresses.LARGEST == 200_000_000
