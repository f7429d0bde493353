"""The folder of `segment --save`: results of each photo, a record of what is done, and the files that list all photos.

FOLDER/masks, overlays, probabilities, images, labels    one file a photo
FOLDER/names.txt, coco.json, annotations.json, ...       of all photos, written last, by the first process
FOLDER/.fgaseg/settings.json                             what decides the results
FOLDER/.fgaseg/photos                                    one record a photo, written after its results

Processes and machines share nothing but this folder. Each record is a file of its own, so that nothing is appended to,
locked or merged while they run.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ResultError
from ..files import atomic_write, real_path
from .data_set_files import data_set_texts
from .photos import HIDDEN, STDIN, Photo
from .result_files import FOLDERS, write_photo

if TYPE_CHECKING:
    from ..inference import Result
    from ..vocabulary import ClassPrompts


@dataclass(frozen=True)
class Job:
    """A photo to label.

    name       the path of its results below their folders, without suffix
    file_name  what the COCO file calls it
    """

    photo: Photo
    name: Path
    file_name: str


class LabelledFolder:
    """Results of one set of settings.

    kinds     what is saved of each photo
    settings  JSON-able, all that decides a result beside the photo; other settings in the same folder are refused
    names     of all labels, in the order of their values
    classes   what the model was given, names with their prompts
    """

    def __init__(
        self,
        folder: Path,
        kinds: Sequence[str],
        settings: Mapping[str, Any],
        names: Sequence[str],
        classes: Sequence[ClassPrompts],
    ) -> None:
        from ..evaluation.provenance import short_hash

        self.folder, self.kinds, self.names, self.classes = folder, tuple(kinds), tuple(names), classes
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, "kinds": ",".join(sorted(kinds))}))
        self.hash = short_hash(self.settings)
        self._records = folder / HIDDEN / "photos"

    def open(self) -> None:
        """Write down the settings. Raises ResultError if the folder holds results of others, and names these."""
        from ..data import names_text

        names_text(self.names)  # an error now, not after hours
        self._settle()

    def _settle(self) -> None:
        """The settings are those of the folder, also if another run has begun there at the same time."""
        from ..evaluation.provenance import differences

        file = self.folder / HIDDEN / "settings.json"
        before = _read(file)
        if before is None:
            self._write(file, [json.dumps(self.settings, indent=1)])
        elif changed := differences(before, self.settings):
            raise ResultError(
                f"{self.folder}: holds results of other settings ({'; '.join(changed)}): give another --out, or remove "
                "this folder to label all anew"
            )

    def refuse_same_names(self, jobs: Sequence[Job]) -> None:
        """Raise ResultError if ``coco.json`` would list two photos by one name: one of an earlier run, one of these."""
        if "coco" not in self.kinds:
            return
        names, sources = {job.file_name: job for job in jobs}, {self._source(job) for job in jobs}
        for file, record in self._found():
            other = record["photo"]["source"]
            if (job := names.get(record["file_name"])) and other not in sources:
                raise self._of_another(file.relative_to(self._records).with_suffix(""), other, job)

    def _of_another(self, name: Path, other: str, job: Job) -> ResultError:
        return ResultError(
            f"{self.folder}: has results {name} of another photo, {other}, and not of {job.photo.name}: give another "
            "--out"
        )

    def record(self, job: Job) -> dict[str, Any] | None:
        """What was recorded of a photo whose results are all here and belong to the photo as it is now.

        Raises ResultError if the results are those of another photo.
        """
        found = _read(self._record_file(job))
        if not found or found.get("settings") != self.hash or "files" not in found or job.photo.name == STDIN:
            return None
        if (other := found["photo"]["source"]) != self._source(job):
            raise self._of_another(job.name, other, job)
        here = all((self.folder / file).is_file() for file in found["files"].values())
        return found if here and found["photo"] == self.identity(job) else None

    def failed(self, job: Job) -> bool:
        """Whether a process has recorded that it could not label a photo."""
        return "error" in (_read(self._record_file(job)) or {})

    def save(self, job: Job, identity: dict[str, Any], result: Result, copies: bool) -> dict[str, Any]:
        """Write the results of a photo, then its record, which is returned.

        identity  of the photo before it was read: one that has changed since is labelled again by the next run
        copies    a data set's photo may be a copy of the file, since it was read without choice of bands and values

        Raises ResultError if a run with other settings writes to the folder, too.
        """
        from ..inference.coco import coco_of

        self._settle()
        copies = copies and self.identity(job) == identity  # the file may be another by now
        before = _read(self._record_file(job)) or {}
        listed = {"coco", "dataset"} & set(self.kinds)
        try:
            files = write_photo(self.folder, self.kinds, job.photo, job.name, result, copies)
        except OSError as error:
            raise self._no_room(error) from error
        record = {
            "photo": identity,
            "settings": self.hash,
            "files": files,
            "row": {"image": job.photo.name, "size": list(result.labels.shape), "classes": result.present},
            "file_name": job.file_name,
            "annotations": coco_of(result, job.file_name)["annotations"] if listed else [],
        }
        self._write(self._record_file(job), [json.dumps(record)])
        self._remove(before, files.values())
        return record

    def fail(self, job: Job, reason: str) -> None:
        """Record that a photo cannot be labelled; the next run tries again."""
        before = _read(self._record_file(job)) or {}
        self._write(self._record_file(job), [json.dumps({"error": reason})])
        self._remove(before)

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is printed about a photo."""
        files = {kind: str(self.folder / file) for kind, file in record["files"].items()}
        return {**record["row"], "files": files}

    def clean(self, jobs: Sequence[Job]) -> None:
        """Remove what a killed process has left half-written of these photos."""
        names = defaultdict(set)
        for job in jobs:
            names[job.name.parent].add(job.name.name)
        places = [folder for kind in self.kinds for folder in FOLDERS[kind]] + [f"{HIDDEN}/photos"]
        for below, wanted in names.items():
            for place in places:
                for file in (self.folder / place / below).glob(".*.tmp"):  # .<name>.png.<random>.tmp
                    if Path(file.name[1:]).with_suffix("").with_suffix("").stem in wanted:
                        file.unlink(missing_ok=True)

    def finish(self, jobs: Sequence[Job], about: Mapping[str, Any]) -> dict[str, str]:
        """Write the files that list all photos of the folder, those of earlier runs too; returns their paths.

        jobs   the photos of this run; what the folder holds of these under other names is removed
        about  the model and the settings, for the data set's README.md
        """
        from ..data import names_text

        names = {self._source(job): self._record_file(job) for job in jobs}
        for file, record in self._found():
            if names.get(record["photo"]["source"], file) != file:
                file.unlink(missing_ok=True)
                self._remove(record)
        texts: dict[str, Iterable[str]] = {"names.txt": [names_text(self.names)]}
        if "coco" in self.kinds:
            texts["coco.json"] = self._coco(lambda record: record["file_name"])
        if "dataset" in self.kinds:
            texts["annotations.json"] = self._coco(lambda record: record["files"]["image"].removeprefix("images/"))
            texts |= data_set_texts(self.names, self.classes, about)
        for name, parts in texts.items():
            for left in self.folder.glob(f".{name}.*.tmp"):  # by a process that was killed here
                left.unlink(missing_ok=True)
            self._write(self.folder / name, parts)
        shown = {"names": "names.txt", "coco": "coco.json", "dataset": "data.yaml"}
        return {kind: str(self.folder / name) for kind, name in shown.items() if name in texts}

    def _coco(self, file_name: Callable[[dict[str, Any]], str]) -> Iterator[str]:
        """COCO's JSON in parts, a line for each photo and annotation: they need not all fit into memory."""
        from ..inference import CocoWriter

        head = {"info": {"description": "labels by fgaseg"}, "categories": CocoWriter(self.names).categories}
        yield json.dumps(head).removesuffix("}") + ', "images": ['
        for number, (_, record) in enumerate(self._found(), 1):
            height, width = record["row"]["size"]
            image = {"id": number, "file_name": file_name(record), "height": height, "width": width}
            yield ("," if number > 1 else "") + "\n" + json.dumps(image)
        yield '\n], "annotations": ['
        count = 0
        for number, (_, record) in enumerate(self._found(), 1):
            for one in record["annotations"]:
                count += 1
                yield ("," if count > 1 else "") + "\n" + json.dumps({**one, "id": count, "image_id": number})
        yield "\n]}\n"

    def _found(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """All records of these settings, sorted by their names."""
        for file in sorted(self._records.rglob("*.json")):
            record = _read(file)
            if record and record.get("settings") == self.hash and "files" in record:
                yield file, record

    def _remove(self, record: Mapping[str, Any], but: Iterable[str] = ()) -> None:
        """The files of a record that is no more, except those that are another's now."""
        for file in {*record.get("files", {}).values()} - {*but}:
            (self.folder / file).unlink(missing_ok=True)

    def _record_file(self, job: Job) -> Path:
        return self._records / job.name.with_name(f"{job.name.name}.json")

    def _source(self, job: Job) -> str:
        """The photo's path from here, so that photos and results may move together; or its address."""
        path = job.photo.path
        return job.photo.name if path is None else os.path.relpath(real_path(path), real_path(self.folder))

    def identity(self, job: Job) -> dict[str, Any]:
        """What tells a photo from others, and from what it was before."""
        path = job.photo.path
        stat = path.stat() if path is not None and path.exists() else None
        return {"source": self._source(job), **({"size": stat.st_size, "modified": stat.st_mtime_ns} if stat else {})}

    def _write(self, file: Path, parts: Iterable[str]) -> None:
        try:
            atomic_write(file, lambda stream: stream.writelines(part.encode() for part in parts))
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> OSError:
        return OSError(
            f"{self.folder}: cannot be written to ({error.strerror or error}): make room, or give another --out; what "
            "is done is kept, and the same command goes on"
        )


def _read(file: Path) -> dict[str, Any] | None:
    """None if there is no such file, or if it is damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
