"""What the server answers, and what it does not: raw requests, as somebody with bad intentions sends them."""

import http.server
import io
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from app_photos import noise, png
from PIL import Image

from fgaseg.app import gate

pytest.importorskip("gradio")
from starlette.testclient import TestClient

from fgaseg.app import Labeller, build_app, server

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def answers(model_folder):
    labeller = Labeller([str(model_folder)])
    with TestClient(build_app(labeller), base_url="http://127.0.0.1:7860", follow_redirects=False) as client:
        client.labeller = labeller
        yield client


def ask(client, data, fn_index=0):
    question = {"data": data, "fn_index": fn_index, "session_hash": "somebody", "event_data": None, "trigger_id": None}
    return client.post("/gradio_api/queue/join", json=question)


def labelled(client):
    key = client.post("/photos?name=street.png", content=png(noise()), headers=BYTES).json()["photo"]
    client.labeller.label(key, "cat, dog", "mine/model")
    return key


# ---- photos


def test_a_photo_comes_back_under_its_key(answers):
    said = answers.post("/photos?name=a%20street.png", content=png(noise()), headers=BYTES).json()
    assert said["name"] == "a street.png" and said["size"] == [30, 40]
    picture = answers.get(f"/photos/{said['photo']}/photo.jpg")
    assert picture.headers["content-type"] == "image/jpeg"
    shown = np.asarray(Image.open(io.BytesIO(picture.content)), int)
    assert shown.shape == (30, 40, 3) and abs(shown.mean() - noise().mean()) < 5


def test_labels_come_as_they_are(answers):
    key = labelled(answers)
    result = answers.labeller.result(key)
    labels, scores = np.frombuffer(answers.get(f"/photos/{key}/labels").content, "<u2").reshape(2, 30, 40)
    assert (labels == result.labels).all() and (scores == np.round(result.scores * 1000)).all()


def test_a_map_comes_as_a_picture(answers):
    key = labelled(answers)
    got = Image.open(io.BytesIO(answers.get(f"/photos/{key}/map?kind=global&index=1").content))
    assert (np.asarray(got) == np.asarray(answers.labeller.draw_map(key, "global", 1))).all()


def test_files_come_as_the_labeller_makes_them(answers):
    key = labelled(answers)
    assert answers.get(f"/photos/{key}/mask.png").content == answers.labeller.save(key, ".png")
    assert answers.get(f"/photos/{key}/coco.json").content == answers.labeller.save(key, ".json")


@pytest.mark.parametrize("path", ["photo.jpg", "labels", "map?kind=global&index=0", "mask.png", "coco.json"])
def test_another_key_gives_nothing(answers, path):
    labelled(answers)
    got = answers.get(f"/photos/{'x' * 22}/{path}")
    assert got.status_code == 404 and "not kept here" in got.json()["error"]


@pytest.mark.parametrize("query", ["kind=global&index=9", "kind=other&index=0"])
def test_a_map_that_is_not_there_is_told_in_words(answers, query):
    got = answers.get(f"/photos/{labelled(answers)}/map?{query}")
    assert got.status_code == 404 and got.json()["error"]


def test_what_is_no_photo_is_told_in_words(answers):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    got = answers.post("/photos?name=../../x.svg", content=svg, headers=BYTES)
    assert got.status_code == 404 and got.json()["error"].startswith("x.svg: is an SVG drawing")
    assert answers.post("/photos", content=b"", headers=BYTES).json()["error"].startswith("photo: is empty")


def test_an_upload_is_limited_while_it_comes(answers, monkeypatch):
    monkeypatch.setattr(server, "MOST_UPLOAD", 10_000)
    parts = (b"x" * 1000 for _ in range(100))
    got = answers.post("/photos?name=large.jpg", content=parts, headers=BYTES)
    assert got.status_code == 413 and "larger than" in got.json()["error"]


def test_other_sites_cannot_send_photos(answers):
    """A form or a script of another site can send these types without asking; ours needs leave, which is not given."""
    for kind in ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded", "image/png"):
        assert answers.post("/photos", content=png(noise()), headers={"content-type": kind}).status_code == 415
    asked = {"origin": "https://example.org", "access-control-request-method": "POST",
             "access-control-request-headers": "content-type"}  # fmt: skip
    preflight = answers.options("/photos", headers=asked)
    assert preflight.status_code >= 400 and "access-control-allow-origin" not in preflight.headers
    for host in ("127.0.0.1:7860", "192.0.2.7:7860"):  # Gradio by itself lets all sites read from the second
        got = answers.get("/config", headers={"origin": "https://example.org", "host": host})
        assert got.status_code == 200 and "access-control-allow-origin" not in got.headers


# ---- files of this machine


def roads_to(path):
    """A path as Gradio serves files, in every way that it has or had."""
    dotted = os.path.relpath(path)
    for form in (
        str(path),
        dotted,
        f"{Path.cwd()}/{dotted}",
        str(path).replace("/", "%2f"),
        dotted.replace(".", "%2e"),
    ):
        yield f"/gradio_api/file={form}"
        yield f"/gradio_api/file/{form}"
        yield f"/file={form}"
        yield f"/file/{form}"
        yield f"/static/{form}"
        yield f"/assets/{form}"
        yield f"/svelte/{form}"
        yield f"/gradio_api/custom_component/x/client/{form}"
        yield f"/photos/x/{form}"


def test_no_file_of_this_machine_can_be_read(answers, model_folder, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(noise()))
    beside = Path("pyproject.toml").resolve()
    for path in ("/etc/passwd", secret, beside, model_folder / "config.json", model_folder / "model.safetensors"):
        for road in roads_to(path):
            got = answers.get(road)
            assert got.status_code in (403, 404), road
            assert len(got.content) < 200, road


def test_gradio_itself_would_not_serve_them_either(answers, model_folder):
    """The second lock: behind the gate, nothing is allowed and all is blocked."""
    behind = TestClient(answers.app.app)
    for path in ("/etc/passwd", model_folder / "config.json", Path("pyproject.toml").resolve()):
        assert behind.get(f"/gradio_api/file={path}").status_code == 403


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "value",
    [FILE, [FILE], [[FILE]], {"a": FILE}, {"path": "/etc/passwd"}, {"url": "http://127.0.0.1:1/"}, ["cat"], {}],
)
def test_a_question_holds_no_files_and_no_addresses(answers, value):
    assert ask(answers, ["", value, "", "mine/model", 0.0]).status_code == 400
    escaped = json.dumps({"data": [value], "fn_index": 0, "session_hash": "s"}).replace(
        "gradio.File", "gradio\\u002eFile"
    )
    kind = {"content-type": "application/json"}
    assert answers.post("/gradio_api/queue/join", content=escaped, headers=kind).status_code == 400


def test_no_address_is_fetched_for_a_question(answers):
    asked = []

    class Inside(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    inside = http.server.HTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=inside.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{inside.server_port}/secret.png"
    file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
    assert ask(answers, ["", file, "", "mine/model", 0.0]).status_code == 400
    for road in (f"/gradio_api/file={address}", f"/gradio_api/proxy={address}", f"/file={address}"):
        assert answers.get(road).status_code == 404
    assert answers.post("/photos", content=address.encode(), headers=BYTES).status_code == 404
    inside.shutdown()
    assert asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b'{"data": {}}', b"[" * 100_000, b"x" * 300_000])
def test_questions_that_are_none_are_refused(answers, body):
    kind = {"content-type": "application/json"}
    assert answers.post("/gradio_api/queue/join", content=body, headers=kind).status_code == 400


# ---- what is not there


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/api/answer"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/gradio_api/call/v2/answer"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/mcp/sse"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("PUT", "/photos"),
        ("DELETE", "/"),
    ],
)
def test_gradio_offers_nothing_else(answers, method, path):
    assert answers.request(method, path, json={"data": []}).status_code == 404


def test_nobody_passes_by_the_queue(answers):
    """But with the threshold, which costs next to nothing."""
    waiting = [
        number for number, one in enumerate(answers.get("/config").json()["dependencies"]) if one["queue"] is not False
    ]
    assert waiting
    for number in waiting:
        question = {"data": ["", "cat", "", "mine/model", 0.0], "fn_index": number, "session_hash": "somebody"}
        assert answers.post("/gradio_api/run/predict", json=question).status_code >= 400
    file = {"data": [FILE, 0.0], "fn_index": 0, "session_hash": "somebody"}
    assert answers.post("/gradio_api/run/predict", json=file).status_code == 400


def test_what_the_page_needs_is_there(answers):
    home = answers.get("/")
    assert home.status_code == 200
    for path in ("/config", "/theme.css", "/gradio_api/startup-events", "/gradio_api/app_id"):
        assert answers.get(path).status_code == 200, path
    for path in re.findall(r'"\./(assets/[^"]+)"', home.text):
        assert answers.get(f"/{path}").status_code == 200, path
    assert answers.head("/").status_code == 200


def test_the_page_names_no_other_host(answers):
    """Of what a browser loads by itself; the content security policy refuses the rest."""
    home = answers.get("/")
    loads = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*\s(?:src|href)=[\"']?(?:https?:)?//[^>]*>", home.text)
    assert loads == []
    assert "googleapis" not in home.text + answers.get("/theme.css").text + answers.get("/config").text
    assert answers.get("/config").json()["analytics_enabled"] is False
    policy = home.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert home.headers["x-content-type-options"] == "nosniff" and home.headers["cache-control"] == "no-store"


def test_no_path_of_this_machine_is_told(answers, model_folder):
    told = answers.get("/").text + answers.get("/config").text
    assert str(model_folder.parent.parent) not in told and str(Path.cwd()) not in told


# ---- the rules themselves


@pytest.mark.parametrize("path", ["/", "/assets/index-Ab_9.js", "/photos/a-B_9/photo.jpg", "/gradio_api/heartbeat/x1"])
def test_paths_that_are_let_in(path):
    assert gate.allowed("GET", path)


@pytest.mark.parametrize(
    "path",
    ["/assets/../../x", "/static/..", "/photos/../x", "//assets/x", "/assets/x\0y", "/assets/x\n", "/assets\\..\\x", "",
     "/gradio_api/file=/etc/passwd", "/x/gradio_api/app_id", "/photos/a/b/c", "/gradio_api/queue/data/x"],
)  # fmt: skip
def test_paths_that_are_not(path):
    assert not gate.allowed("GET", path)


def test_plain_questions():
    assert gate.is_plain(json.dumps({"data": ["cat, dog", 0.5, 1, True, None]}).encode())
    assert gate.is_plain(b'{"session_hash": "x"}')  # cancel
