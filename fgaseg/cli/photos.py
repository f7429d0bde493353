"""The photos that the words of a command name, and the pictures that are drawn of them."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import sys
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..files import read_limited, real_path
from .options import check_out

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pnm",
            ".jp2", ".avif", ".heic", ".heif", ".tga")  # fmt: skip
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
STDIN = "-"
HIDDEN = ".fgaseg"  # in a folder of results: what is known about them
FILES = (".tif", ".tiff", ".bmp", ".gif", ".npy", ".npz", ".json", ".geojson", ".gpkg", ".txt", ".csv",
         ".pdf")  # no names of folders  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """A photo that was asked for.

    name    as it is shown: a path, an address, or "standard input"
    below   the path of its picture below a folder, without suffix
    error   why there is none, or ""
    """

    name: str
    below: Path
    error: str = ""

    @property
    def path(self) -> Path | None:
        """None for an address and for standard input."""
        return None if self.name == STDIN or "://" in self.name else Path(self.name)

    def source(self) -> str | io.BytesIO:
        """What `read_image` takes."""
        if self.name != STDIN:
            return self.name
        from ..data import NamedBytes

        return NamedBytes(sys.stdin.buffer.read(), "standard input")


def find_photos(words: list[str]) -> list[Photo]:
    """The photos that words name, in their order, each once: files, folders, patterns, lists, addresses, "-".

    word     what it names
    folder   the image files in it and below, sorted by path; hidden files, results of --save and others are left out,
             with a note
    pattern  with *, ? or [ ], ** for any folders: the image files that match, sorted
    @list    a text file of any of these, one a line; also without @ if it ends in .txt
    -        an image on standard input

    What is not there is a Photo with an error. Raises UsageError if there are no words or no photos at all.
    """
    if not words:
        raise UsageError("give the photos to label: files, folders, patterns, addresses, or - for standard input")
    found: dict[object, Photo] = {}
    for photo in _expand(words):
        found.setdefault(real_path(photo.path) if photo.path else photo.name, photo)
    if not found:
        raise UsageError(f"{', '.join(words)}: no image files there (known by {', '.join(SUFFIXES)})")
    return list(found.values())


def _expand(words: Iterable[str], within: Path | None = None) -> Iterator[Photo]:
    """``within``: the folder of the list that the words come from, where their paths may begin."""
    for word in words:
        path = Path(word)
        if within is not None and not path.exists() and (within / path).exists():
            path = within / path
        if word == STDIN and within is None:
            yield _stdin()
        elif "://" in word and not path.exists():
            yield _address(word)
        elif word.startswith("@") and not path.exists() and within is None:
            yield from _listed(Path(word[1:]))
        elif path.is_dir():
            yield from _folder(path)
        elif path.is_file() and path.suffix.lower() == ".txt" and within is None:
            yield from _listed(path)
        elif path.exists() or not glob.has_magic(word):
            error = "" if path.exists() else f"{word}: no such file: check the path"
            yield Photo(str(path), Path(path.stem), error)
        else:
            yield from _matching(word, within)


def _stdin() -> Photo:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal: send an image to it, for example with < photo.jpg")
    return Photo(STDIN, Path("stdin"))


def _address(word: str) -> Photo:
    from ..data import is_address

    parts = urllib.parse.urlsplit(word)
    last = urllib.parse.unquote(parts.path).rstrip("/").rpartition("/")[2]
    stem = re.sub(r"[^\w.-]+", "_", Path(last).stem).strip(".") or re.sub(r"[^\w.-]+", "_", parts.netloc) or "photo"
    error = "" if is_address(word) else f"{word}: only http and https addresses are fetched: fetch it yourself"
    return Photo(word, Path(stem), error)


def _folder(folder: Path) -> Iterator[Photo]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    results = {hidden.parent for hidden in folder.rglob(HIDDEN)}
    if left := [file for file in files if not results.isdisjoint(file.parents)]:
        log.info("%s: left out, since --save has written them: %d files in %s", folder, len(left), min(results))
        files = [file for file in files if results.isdisjoint(file.parents)]
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    for file in _images(shown, str(folder)):
        yield Photo(str(file), file.relative_to(folder).with_suffix(""))


def _matching(pattern: str, within: Path | None) -> Iterator[Photo]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches and within is not None:
        matches = sorted(glob.glob(str(within / pattern), recursive=True))
    paths = [Path(match) for match in matches]
    for folder in (path for path in paths if path.is_dir() and "**" not in pattern):
        yield from _folder(folder)
    files = [path for path in paths if path.is_file()]
    if not paths:
        yield Photo(pattern, Path("none"), f"{pattern}: no file matches: check the pattern")
    for file in _images(files, pattern):
        yield Photo(str(file), Path(file.stem))


def _images(files: list[Path], where: str) -> list[Path]:
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if others := [file for file in files if file.suffix.lower() not in SUFFIXES]:
        log.info("%s: left out, since their names are none of images: %d, the first %s", where, len(others), others[0])
    return images


def _listed(file: Path) -> Iterator[Photo]:
    try:
        lines = read_limited(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        yield Photo(
            str(file), Path(file.stem), f"{file}: the list cannot be read ({reason}): one photo a line is needed"
        )
        return
    words = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    photos = list(_expand(words, file.parent))
    if photos and not all(photo.error for photo in photos):
        yield from photos
    else:
        first = f", the first: {photos[0].error}" if photos else ""
        reason = f"{file}: is no list of photos, one a line: none of its {len(words)} lines names one{first}"
        yield Photo(str(file), Path(file.stem), reason)


def picture_paths(photos: list[Photo], out: str | None) -> list[Path]:
    """The picture to write for each photo: ``out`` itself for one photo, if it is no folder; else a file below it.

    Photos of the same name get longer ones: of their folders, then of their suffixes, then numbers. Raises UsageError
    if ``out`` is no format that is written, cannot be written to, or is one of the photos.
    """
    suffix = Path(out or "").suffix.lower()
    is_folder = out is None or not suffix or out.endswith(("/", os.sep)) or Path(out).is_dir()
    if out is not None and not is_folder and len(photos) == 1:
        if suffix not in PICTURES:
            raise UsageError(f"--out {out}: pictures are written as {', '.join(PICTURES)}: choose one of these"
                             + _hint(suffix))  # fmt: skip
        paths = [Path(out)]
    elif out is not None and not is_folder and suffix in (*PICTURES, *FILES):
        raise UsageError(f"--out {out}: is one picture, and there are {len(photos)} photos: name a folder")
    else:
        folder = Path(out or "")
        paths = [folder / below.with_name(f"{below.name}_labels.png") for below in result_names(photos)]
    refuse_photos(photos, paths)
    for folder in {path.parent for path in paths}:
        check_out(folder)
    return paths


def _hint(suffix: str) -> str:
    if suffix in FILES:
        return "; --save mask writes labels as .tif, .npz and others, and model.segment(...).labels is the array"
    return ""


def file_names(photos: list[Photo]) -> list[str]:
    """What a list of photos calls each, no two alike: its path below the folder that it was found in, with its suffix.

    Of photos that would be called alike, as those of several addresses, the first keeps the name (a file before an
    address), and the others have their whole path or address.
    """
    names: list[str] = []
    taken: set[str] = set()
    for photo, below in zip(photos, _with_folders(photos), strict=True):
        source = urllib.parse.unquote(urllib.parse.urlsplit(photo.name).path) if photo.path is None else photo.name
        names.append(below.with_name(below.name + Path(source).suffix).as_posix())
    for index in sorted(range(len(photos)), key=lambda index: photos[index].path is None):
        if names[index] in taken:
            names[index] = photos[index].name
        taken.add(names[index])
    return names


def _with_folders(photos: list[Photo]) -> list[Path]:
    """``below`` of each photo, with its folders where several are alike."""
    names = [photo.below for photo in photos]
    for same in _alike(names):
        paths = {index: real_path(path) for index in same if (path := photos[index].path)}
        common = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
        for index, path in paths.items():
            names[index] = path.relative_to(common).with_suffix("")
    return names


def result_names(photos: list[Photo]) -> list[Path]:
    """``below`` of each photo, with folders, the suffix or a number added where several are alike.

    A photo whose name is its own keeps it: files of other programs pair by name, and would pair with another's.
    """
    plain = _with_folders(photos)
    names = list(plain)
    for same in _alike(names):
        for index in same:
            suffix = path.suffix if (path := photos[index].path) else ""
            names[index] = names[index].with_name(names[index].name + suffix.replace(".", "_"))
    while groups := _alike(names):
        for same in groups:
            others = sorted(same, key=lambda index: names[index] != plain[index])[1:]
            for number, index in enumerate(others, 2):
                names[index] = names[index].with_name(f"{names[index].name}_{number}")
    return names


def _alike(names: list[Path]) -> list[list[int]]:
    """Indices of names that are one on a file system that does not tell capitals from small letters."""
    groups = defaultdict(list)
    for index, name in enumerate(names):
        groups[str(name).casefold()].append(index)
    return [group for group in groups.values() if len(group) > 1]


def refuse_photos(photos: list[Photo], pictures: list[Path]) -> None:
    """Raise UsageError if one is a photo: by file, not by name, since links and capitals may name the same one."""

    def files(paths: Iterable[Path]) -> Iterator[tuple[tuple[int, int], Path]]:
        for path in paths:
            if path.exists():
                status = path.stat()
                yield (status.st_dev, status.st_ino), path

    given = dict(files(photo.path for photo in photos if photo.path))
    for key, picture in files(pictures):
        if key in given:
            raise UsageError(f"--out: {picture} is the photo {given[key]}, which would be lost: choose another --out")
