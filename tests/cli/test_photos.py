"""Which photos the words of `fgaseg segment` name, where their pictures go, and what a bad one costs."""

import http.server
import io
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

import fgaseg
from fgaseg import progress
from fgaseg.cli import main
from fgaseg.cli.photos import file_names, find_photos, picture_paths
from fgaseg.data import addresses, read_image
from fgaseg.errors import ImageError, UsageError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(*names: str, size: tuple[int, int] = (12, 9)) -> None:
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(name)


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def named(*words: str) -> list[str]:
    return [photo.error or photo.name for photo in find_photos(list(words))]


def pictures(*words: str, out: str | None = None) -> list[str]:
    return [str(path) for path in picture_paths(find_photos(list(words)), out)]


@pytest.fixture
def server():
    """Answers with what `files` holds for a path: bytes, a status, or a function that writes the answer itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.files.get(self.path, 404)
            if callable(content):
                content(self)
            elif isinstance(content, int):
                self.send_error(content)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.url = {}, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def png(size: tuple[int, int] = (12, 9)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


# ---- which photos


def test_a_folder_gives_all_images_below_it_sorted_and_says_what_it_leaves_out(caplog):
    caplog.set_level("INFO", "fgaseg")
    draw("in/b.png", "in/a.JPG", "in/deep/er/c.webp", "in/.hidden/d.png", "in/._a.jpg")
    write("in/notes.md", ""), write("in/deep/Thumbs.db", "")
    assert named("in") == ["in/a.JPG", "in/b.png", "in/deep/er/c.webp"] == named("in/")
    assert "in: left out, since their names are none of images: 2, the first in/deep/Thumbs.db" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.png", ["in/a.png", "in/b.png"]),
        ("in/**/*.png", ["in/a.png", "in/b.png", "in/deep/c.png"]),
        ("in/[ab].*", ["in/a.png", "in/b.png"]),
        ("in/?.png", ["in/a.png", "in/b.png"]),
        ("in/*", ["in/deep/c.png", "in/a.png", "in/b.png"]),
    ],
)
def test_quoted_patterns_are_expanded(pattern, expected):
    draw("in/b.png", "in/a.png", "in/deep/c.png")
    write("in/b.txt", "")
    assert named(pattern) == expected


def test_what_is_there_is_no_pattern_no_list_and_no_address():
    draw("a[1].png", "@b.png", "c=1.png")
    assert named("a[1].png", "@b.png", "c=1.png") == ["a[1].png", "@b.png", "c=1.png"]


@pytest.mark.parametrize("word", ["@in/list.txt", "in/list.txt", "@in/list.dat"])
def test_lists_name_files_of_their_own_folder_or_of_this_one(word):
    draw("a.png", "in/b.png", "in/sub/c.png", "in/e f.png")
    write(
        word.lstrip("@"),
        "# a comment\na.png\n\n# comment\nb.png\nsub\ne f.png\n*.png\nhttp://x.org/d.jpg\n",
    )
    assert named(word) == ["a.png", "in/b.png", "in/sub/c.png", "in/e f.png", "http://x.org/d.jpg"]


def test_order_is_as_given_and_every_photo_comes_once():
    draw("z.png", "in/a.png", "in/b.png")
    os.symlink("z.png", "link.png")
    assert named("z.png", "in/b.png", "in", "./z.png", "link.png") == ["z.png", "in/b.png", "in/a.png"]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("none.jpg", "none.jpg: no such file"),
        ("*.jpx", r"\*.jpx: no file matches"),
        ("@none.txt", "none.txt: the list cannot be read"),
        ("prose.txt", "prose.txt: is no list of photos.*the first: once upon a time: no such file"),
        ("ftp://x.org/a.jpg", "only http and https"),
        ("s3://bucket/a.jpg", "only http and https"),
    ],
)
def test_what_is_not_there_is_an_error_of_that_photo_alone(word, words):
    draw("a.png")
    write("prose.txt", "once upon a time\nthere was\n")
    photos = find_photos([word, "a.png"])
    assert [bool(photo.error) for photo in photos] == [True, False]
    assert re.search(words, photos[0].error)


def test_a_folder_without_images_says_what_counts_as_one():
    write("in/a.doc", "")
    with pytest.raises(UsageError, match=r"in: no image files there \(known by \.jpg"):
        find_photos(["in"])
    with pytest.raises(UsageError, match="give the photos"):
        find_photos([])


# ---- where pictures go


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["a/x.png", "b/x.png"], ["a/x", "b/x"]),
        (["a/x.png", "a/x.jpg", "y.png"], ["x_png", "x_jpg", "y"]),
        (["a/c/x.png", "a/d/x.png", "a/d/x.jpg", "x.png"], ["a/c/x", "a/d/x_png", "a/d/x_jpg", "x"]),
        (["a/X.png", "b/x.png"], ["a/X", "b/x"]),
    ],
)
def test_photos_of_one_name_do_not_overwrite_each_other(photos, expected):
    draw(*photos)
    assert pictures(*photos, out="out") == [f"out/{name}_labels.png" for name in expected]


def test_folders_keep_their_structure():
    draw("in/x.png", "in/a/x.png", "in/a/b/y.png", "other/y.png")
    assert pictures("in", out="out") == ["out/a/b/y_labels.png", "out/a/x_labels.png", "out/x_labels.png"]
    assert pictures("in", "other/y.png") == ["a/b/y_labels.png", "a/x_labels.png", "x_labels.png", "y_labels.png"]


def test_addresses_give_plain_file_names():
    words = ["http://x.org/a%20b/c%20d.jpg?w=1", "https://y.org/../c d.png", "http://x.org/", "http://x.org/e..%2F.png"]
    found = pictures(*words, out="out")
    assert found[:3] == ["out/c_d_labels.png", "out/c_d_2_labels.png", "out/x.org_labels.png"]
    assert all(len(Path(path).parts) == 2 and ".." not in Path(path).parts for path in found)


def test_a_photo_with_a_name_of_its_own_keeps_it():
    draw("in/x.jpg", "in/x.png", "in/x_jpg.png", "in/x_png.jpg")
    found = dict(zip(["x.jpg", "x.png", "x_jpg.png", "x_png.jpg"], pictures("in", out="out"), strict=True))
    assert found["x_jpg.png"] == "out/x_jpg_labels.png" and found["x_png.jpg"] == "out/x_png_labels.png"
    assert found["x.jpg"] == "out/x_jpg_2_labels.png" and found["x.png"] == "out/x_png_2_labels.png"


def test_no_two_photos_are_listed_by_one_name():
    draw("in/p.png", "in/p_2.png")
    words = ["http://x.org/1/p.png", "http://x.org/2/p.png", "https://y.org/p.jpg", "in"]
    assert file_names(find_photos(words)) == [*words[:2], "p.jpg", "p.png", "p_2.png"]
    assert file_names(find_photos(words[:2])) == ["p.png", words[1]]


@pytest.mark.parametrize("out", ["o.png", "o.PNG", "o.jpg", "o.JPEG", "o.webp", "sub/o.png"])
def test_one_photo_goes_to_a_picture_of_that_format(out, model, photo):
    assert main(["segment", photo, "--model", model, "--classes", "cat, dog", "--out", out]) == 0
    expected = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}[out.rpartition(".")[2].lower()]
    assert Image.open(out).format == expected


@pytest.mark.parametrize("out", ["x.tif", "x.npy", "x.TIFF", "x.gif", "labels.v2", "x.pngg"])
def test_other_formats_are_refused_with_those_that_are_written(out):
    draw("a.png")
    with pytest.raises(UsageError, match=r"--out x?.*: pictures are written as \.png, \.jpg, \.jpeg, \.webp"):
        pictures("a.png", out=out)
    if out == "x.npy":
        with pytest.raises(UsageError, match=r"labels is the array"):
            pictures("a.png", out=out)


@pytest.mark.parametrize("out", ["folder", "folder/", "folder.v2/", "there.png"])
def test_folders_are_told_from_pictures(out):
    draw("a.png", "b.png")
    Path("there.png").mkdir()
    assert pictures("a.png", out=out) == [f"{out.rstrip('/')}/a_labels.png"]
    assert pictures("a.png", "b.png", out=out)[1] == f"{out.rstrip('/')}/b_labels.png"


@pytest.mark.parametrize("out", ["x.png", "x.jpg", "x.tif", "x.npy"])
def test_several_photos_need_a_folder(out):
    draw("a.png", "b.png")
    with pytest.raises(UsageError, match=r"is one picture, and there are 2 photos: name a folder"):
        pictures("a.png", "b.png", out=out)


def test_a_picture_never_replaces_a_photo():
    draw("a.png", "in/b.png", "in/b_labels.png")
    os.link("a.png", "hard.png")
    os.symlink("a.png", "soft.png")
    for words, out in ((["a.png"], "a.png"), (["a.png"], "hard.png"), (["a.png"], "soft.png"), (["in"], "in/")):
        with pytest.raises(UsageError, match=r"is the photo .*, which would be lost: choose another --out"):
            pictures(*words, out=out)


# ---- the command


def segment(model: str, *words: str) -> int:
    return main(["segment", *words, "--model", model, "--classes", "cat, dog"])


@pytest.mark.parametrize("bad", ["truncated", "text", "missing"])
def test_one_bad_photo_is_named_and_the_rest_goes_on(model, bad, capsys):
    draw("1.png", "2.png", "3.png")
    if bad == "truncated":
        Path("2.png").write_bytes(Path("2.png").read_bytes()[:200])
    elif bad == "text":
        Path("2.png").write_text("no picture")
    else:
        Path("2.png").unlink()
    assert segment(model, "1.png", "2.png", "3.png", "--out", "out") == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["1.png", "3.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["1_labels.png", "3_labels.png"]
    lines = err.splitlines()
    assert any(line.startswith("2.png: ") for line in lines)
    assert lines[-1] == "fgaseg segment: 1 of 3 photos were not labelled: 2.png"


def test_a_bad_photo_is_a_row_of_json(model, capsys):
    draw("1.png", "3.png")
    write("2.png", "no picture")
    assert segment(model, "1.png", "2.png", "3.png", "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == ["1.png", "2.png", "3.png"]
    assert set(rows[1]) == {"image", "error"} and rows[1]["error"].startswith("2.png: is not an image")


def test_one_photo_alone_is_one_line_and_no_model_is_loaded_for_what_is_not_there(model, capsys):
    write("bad.png", "no picture")
    assert segment(model, "bad.png") == 1
    assert capsys.readouterr().err.startswith("fgaseg segment: bad.png: is not an image")
    assert segment("no/such/model", "none.png") == 1
    assert capsys.readouterr().err == "fgaseg segment: none.png: no such file: check the path\n"


def test_a_photo_without_memory_for_it_is_named(model, capsys, monkeypatch):
    draw("1.png", "2.png")
    segment_photo = fgaseg.FGASeg.segment

    def fail(self, image, names, **options):
        if image.getpixel((0, 0)) == Image.open("1.png").getpixel((0, 0)):
            raise MemoryError
        return segment_photo(self, image, names)

    monkeypatch.setattr("fgaseg.FGASeg.segment", fail)
    assert segment(model, "1.png", "2.png") == 1
    assert "1.png: there is not enough memory for it" in capsys.readouterr().err and Path("2_labels.png").exists()


def test_bands_and_range_reach_the_photo(model, capsys, monkeypatch):
    values = np.random.default_rng(0).integers(0, 4096, (9, 12, 5), dtype=np.uint16)
    tifffile.imwrite("scene.tif", values, photometric="minisblack", planarconfig="contig")
    seen = []
    segment_photo = fgaseg.FGASeg.segment
    monkeypatch.setattr(
        "fgaseg.FGASeg.segment",
        lambda self, image, names, **options: seen.append(image) or segment_photo(self, image, names, **options),
    )
    assert segment(model, "scene.tif", "--bands", "5,3,1", "--range", "0,4095") == 0
    np.testing.assert_array_equal(np.asarray(seen[0]), (values[..., [4, 2, 0]] / 4095 * 255).round())
    assert segment(model, "scene.tif", "--range=2%,98%") == 0
    for wrong, words in (("--bands=1,2", "give one or three"), ("--range=5", "give two"), ("--range=9,1", "smaller")):
        assert segment("no/such/model", "scene.tif", wrong) == 1
        assert words in capsys.readouterr().err


def test_a_photo_is_told_of_once_and_not_again_when_it_is_labelled(model, caplog):
    values = np.random.default_rng(0).integers(0, 4096, (9, 12), dtype=np.uint16)
    Image.fromarray(values).save("scan.png")
    assert segment(model, "scan.png") == 0
    assert [text for text in caplog.messages if "values lie between" in text] == caplog.messages[:1]


def test_standard_input_is_a_photo(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(png()), isatty=lambda: False))
    assert segment(model, "-", "--out", "o.png") == 0 and Path("o.png").exists()
    assert segment(model, "-", "--out", "o.png") == 1  # nothing is left
    assert "standard input: is empty" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert segment(model, "--out", "o.png", "-") == 1
    assert "standard input is a terminal" in capsys.readouterr().err


def test_a_picture_too_large_for_its_format_is_the_error_of_that_photo(model, capsys, monkeypatch):
    draw("1.png")
    monkeypatch.setattr("fgaseg.Result.overlay", lambda self: Image.new("RGB", (16384, 2)))
    assert segment(model, "1.png", "--out", "o.webp") == 1
    assert "o.webp: 16384x2 cannot be written as WEBP" in capsys.readouterr().err and not Path("o.webp").exists()


def test_a_bar_does_not_take_what_is_printed_elsewhere(model, capsys, monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=sys.stderr, force_terminal=True))
    draw("1.png", "2.png")
    assert segment(model, "1.png", "2.png", "--json") == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["1.png", "2.png"]
    assert "labelling" in err


# ---- addresses


def test_photos_at_addresses_are_labelled(model, server, capsys):
    server.files = {"/a.png": png(), "/b%20c.png?x=1": png((7, 5)), "/page": b"<!DOCTYPE html><html>no</html>"}
    words = [f"{server.url}/a.png", f"{server.url}/b c.png?x=1", f"{server.url}/gone.png", f"{server.url}/page"]
    assert segment(model, *words, "--out", "out", "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("size") for row in rows] == [[9, 12], [5, 7], None, None]
    assert "/gone.png: the server answers 404" in rows[2]["error"] and "is a web page" in rows[3]["error"]
    assert Path("out/b_c_labels.png").exists()
    np.testing.assert_array_equal(np.asarray(read_image(words[0])), np.asarray(Image.open(io.BytesIO(png()))))


def test_addresses_that_are_too_large_too_slow_or_broken_are_one_line(server, monkeypatch):
    def large(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(6000):
            try:
                handler.wfile.write(bytes(1000))
            except OSError:  # nobody listens any more
                return

    def silent(handler):
        time.sleep(3)

    def short(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(png()[:20])

    server.files = {"/large": large, "/silent": silent, "/short": short}
    monkeypatch.setattr(addresses, "LARGEST", 3_000_000)
    monkeypatch.setattr(addresses, "TIMEOUT", 0.3)
    for path, words in {
        "/large": "is larger than 3 MB",
        "/silent": "no answer within",
        "/short": "cannot be fetched|is not an image|truncated",
        "/none": "answers 404",
    }.items():
        with pytest.raises(ImageError, match=rf"{server.url}{path}: .*({words})"):
            read_image(server.url + path)
    monkeypatch.setattr(addresses, "LARGEST", 10**12)
    monkeypatch.setattr(addresses, "DEADLINE", 0.0)
    with pytest.raises(ImageError, match="takes more than"):
        read_image(f"{server.url}/large")
    for address in ("http://127.0.0.1:1/a.png", "http://nowhere.invalid/a.png", "http://[/a.png", "https://"):
        with pytest.raises(ImageError, match="cannot be fetched"):
            read_image(address)
