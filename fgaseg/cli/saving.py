"""`fgaseg segment --save`: results as files, of one photo or of many on several processes."""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, ProcessLostError, UsageError
from ..files import real_path
from .labelled_folder import Job, LabelledFolder
from .labeller import Labeller
from .options import check_out
from .photos import FILES, PICTURES, Photo, file_names, refuse_photos, result_names
from .printing import say, say_json
from .processes import process, share
from .result_files import SUFFIXES, read_kinds, write_picture
from .stages import Failure, report, run_stages

if TYPE_CHECKING:
    from ..training.signals import Signals
    from ..vocabulary import ClassPrompts

FOLDER = "labelled"  # without --out
WAIT_SECONDS = 600.0  # without a new result of the other processes, until they are considered lost
POLL_SECONDS = 1.0
GEO = (".tif", ".tiff", ".geojson", ".gpkg")  # need optional packages


def run_saving(options: argparse.Namespace, photos: list[Photo], overrides: list[str]) -> int:
    """Label the photos as the options say, print a row for each and one at the end, and return the exit status."""
    kinds = read_kinds(options.save)
    if options.compare or options.pseudo_masks:
        raise UsageError("--compare and --pseudo-masks draw pictures of their own: leave out --save")
    rank, world = process()
    if (path := _single_file(options.out, photos, kinds)) is not None:
        return 0 if rank else _save_one(options, photos[0], overrides, kinds[0], path)
    folder = Path(options.out or FOLDER)
    _check_folder(folder, photos)
    named = zip(photos, result_names(photos), file_names(photos), strict=True)
    jobs = [Job(*one) for one in named]
    if all(photo.error for photo in photos):
        return report({photo.name: photo.error for photo in photos}, len(photos))
    labeller = Labeller(options, overrides, "probabilities" in kinds)
    labelled = LabelledFolder(folder, kinds, _settings(labeller, options), labeller.names, labeller.with_background)
    return _Run(labeller, labelled, jobs, options, rank, world).run()


class _Run:
    """One process's part of labelling a folder; rank 0 also waits for the others, and prints."""

    def __init__(
        self,
        labeller: Labeller,
        labelled: LabelledFolder,
        jobs: list[Job],
        options: argparse.Namespace,
        rank: int,
        world: int,
    ) -> None:
        self.labeller, self.labelled, self.options = labeller, labelled, options
        self.jobs = [job for job in jobs if not job.photo.error]
        self.rank, self.world, self.count = rank, world, len(jobs)
        self.failed = {job.photo.name: job.photo.error for job in jobs if job.photo.error}

    def run(self) -> int:
        from ..training.signals import Signals

        self.labelled.open()
        if not self.rank:
            self.labelled.refuse_same_names(self.jobs)
        with Signals() as signals:
            self._own(signals)
            if self.rank:
                return 0  # what failed is the first process's to tell: torchrun ends all if one fails
            self._others(signals)
        files = self.labelled.finish(self.jobs, self._about())
        self._print_end(files)
        return report(self.failed, self.count)

    def _own(self, signals: Signals) -> None:
        own = share(self.jobs, self.rank, self.world)
        todo = []
        for job in own:
            if (record := self.labelled.record(job)) is None:
                todo.append(job)
            elif self.options.json:
                self._print(job, record)
        before = len(own) - len(todo)
        if before and not self.rank and not self.options.json:
            say(f"{self.labelled.folder}: {before} of {len(own)} photos were labelled by an earlier run")
        self.labelled.clean(todo)
        title = f"labelling, process 0 of {self.world}" if self.world > 1 else "labelling"
        self._label(todo, signals, title, before)

    def _label(self, jobs: Sequence[Job], signals: Signals, title: str = "", done: int = 0) -> None:
        """``title``: of the progress bar; "": none."""
        from ..progress import track

        total = done + len(jobs)
        shown = bool(title) and total > 1 and self.rank == 0
        with closing(run_stages(jobs, _name, self._read, self._apply, self._write, _pixels)) as outcomes:
            for job, outcome in track(outcomes, title, total, done=done, unit="photos", shown=shown):
                if isinstance(outcome, Failure):
                    self.labelled.fail(job, outcome.reason)
                self._print(job, outcome)
                if signals.number:
                    break
        self._stop_if(signals)

    def _read(self, job: Job) -> tuple[dict[str, Any], Any]:
        return self.labelled.identity(job), self.labeller.read(job.photo)

    def _apply(self, job: Job, read: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], Any]:
        (result,) = self.labeller.label(job.photo, read[1]).values()
        return read[0], result

    def _write(self, job: Job, labelled: tuple[dict[str, Any], Any]) -> dict[str, Any]:
        return self.labelled.save(job, *labelled, copies=not self.labeller.view)

    def _others(self, signals: Signals) -> None:
        """Print what the other processes have done, as it comes, and try again what they could not label."""
        queues = [deque(share(self.jobs, rank, self.world)) for rank in range(1, self.world)]
        last = time.monotonic()
        if any(queues):
            say(f"{self.labelled.folder}: the other {self.world - 1} processes are waited for", error=True)
        while any(queues):
            self._stop_if(signals)
            if any([self._settled(queue, signals) for queue in queues if queue]):
                last = time.monotonic()
                continue
            if time.monotonic() - last > WAIT_SECONDS:
                left = sum(map(len, queues))
                raise ProcessLostError(
                    f"{self.labelled.folder}: {left} of {len(self.jobs)} photos are left to other processes, which "
                    f"have done none for {WAIT_SECONDS / 60:.0f} minutes: see what they say; the same command goes on"
                )
            time.sleep(POLL_SECONDS)

    def _settled(self, queue: deque[Job], signals: Signals) -> bool:
        """Whether anything is new of one process, which goes through its share in order."""
        some = False
        while queue:
            if (record := self.labelled.record(queue[0])) is not None:
                self._print(queue[0], record)
            elif self.labelled.failed(queue[0]):  # perhaps by an earlier run
                self._label([queue[0]], signals)
            else:
                break
            queue.popleft()
            some = True
        return some

    def _stop_if(self, signals: Signals) -> None:
        if signals.number:
            done = sum(self.labelled.record(job) is not None for job in self.jobs)
            raise Interrupted(
                f"{self.labelled.folder}: {done} of {len(self.jobs)} photos are labelled; the same command goes on",
                signals.number,
            )

    def _print(self, job: Job, outcome: Any) -> None:
        if self.rank:
            return
        if isinstance(outcome, Failure):
            self.failed[job.photo.name] = outcome.reason
            if self.count > 1:
                say(outcome.reason, error=True)
            if self.options.json:
                say_json({"image": job.photo.name, "error": outcome.reason})
        else:
            print_row(self.labelled.row(outcome), self.options.json)

    def _print_end(self, files: dict[str, str]) -> None:
        if self.options.json:
            counts = {"labelled": self.count - len(self.failed), "failed": len(self.failed)}
            say_json({"folder": str(self.labelled.folder), **counts, "files": files})
        else:
            for kind, path in files.items():
                say(f"{kind}: {path}")

    def _about(self) -> dict[str, Any]:
        """What is told about the labels of a data set."""
        names = ("background", "threshold", "view", "precision", "weights", "version")
        return {"model": self.options.model, **{name: self.labelled.settings[name] for name in names}}


def print_row(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(row)
    else:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
        files = f" -> {', '.join(row['files'].values())}" if row["files"] else ""
        say(f"{row['image']}: {shares}{files}")


def _name(job: Job) -> str:
    return job.photo.name


def _pixels(read: tuple[dict[str, Any], Any]) -> int:
    width, height = read[1].size
    return int(width * height)


def _settings(labeller: Labeller, options: argparse.Namespace) -> dict[str, Any]:
    """All that decides the result of a photo, JSON-able."""
    from .. import __version__
    from ..evaluation import weights_hash

    (model,) = labeller.models.values()
    return {
        "weights": weights_hash(model),
        "config": model.config.dump(),
        "classes": {f"{i}": _written(one) for i, one in enumerate(labeller.classes)},
        "background": labeller.background,
        "threshold": labeller.threshold,
        "view": labeller.view,
        "precision": model.precision,
        "pixel_limit": os.environ.get("FGASEG_PIXEL_LIMIT"),
        "version": __version__,
    }


def _written(one: ClassPrompts) -> str:
    return one.name if one.prompts == (one.name,) else f"{one.name}: {' | '.join(one.prompts)}"


def _single_file(out: str | None, photos: list[Photo], kinds: Sequence[str]) -> Path | None:
    """The file that --out names, or None where it names a folder. Raises UsageError."""
    from ..inference.polygons import require_geo

    path = Path(out or FOLDER)
    suffix = path.suffix.lower()
    if not suffix or str(out).endswith(("/", os.sep)) or path.is_dir():
        return None
    known = SUFFIXES.get(kinds[0], ())
    if len(photos) > 1 or len(kinds) > 1 or not known:
        if suffix not in (*PICTURES, *FILES):
            return None
        what = f"{len(photos)} photos" if len(photos) > 1 else f"{', '.join(kinds)} to be saved"
        raise UsageError(f"--out {out}: is one file, and there are {what}: name a folder")
    if suffix not in known:
        raise UsageError(
            f"--out {out}: {kinds[0]} is written as {', '.join(known)}: choose one of these, or {out}/ for a folder"
        )
    refuse_photos(photos, [path])
    check_out(path.parent)
    if suffix in GEO:
        require_geo(str(path))
    return path


def _save_one(options: argparse.Namespace, photo: Photo, overrides: list[str], kind: str, path: Path) -> int:
    if photo.error:
        return report({photo.name: photo.error}, 1)
    labeller = Labeller(options, overrides, kind == "probabilities")

    def write(_: Photo, results: dict[str, Any]) -> dict[str, Any]:
        (result,) = results.values()
        if kind == "overlay":
            write_picture(result.overlay(legend=False), path)
        else:
            result.save(path)
        row = {"image": photo.name, "size": list(result.labels.shape), "classes": result.present}
        return {**row, "files": {kind: str(path)}}

    ((_, outcome),) = run_stages([photo], lambda one: one.name, labeller.read, labeller.label, write)
    if isinstance(outcome, Failure):
        return report({photo.name: outcome.reason}, 1)
    print_row(outcome, options.json)
    return 0


def _check_folder(folder: Path, photos: list[Photo]) -> None:
    """Raises UsageError if nothing can be written there, or if photos lie in it, among which results would be."""
    for photo in photos:
        if photo.path is not None and real_path(folder) in real_path(photo.path).parents:
            raise UsageError(f"--out {folder}: holds a photo, {photo.name}: give a folder for results alone")
    check_out(folder)
