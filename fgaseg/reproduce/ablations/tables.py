"""Tables II to VII of the paper, and one of our own, as data: rows, what each changes, and what the paper claims."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import UsageError

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    labels: Labels  # its leading cells, one for each heading of the part
    switches: tuple[str, ...] = ()  # configuration overrides, applied after DEFAULT
    paper: str = ""  # the paper's mIoU on A-150, where its text gives one
    top_k: int | None = None  # Table VI: evaluate the trained model with this top_k instead
    paper_time: str = ""  # Table VI: the paper's time, of unnamed unit


@dataclass(frozen=True)
class Claim:
    """A comparison that the paper makes between two rows of one part: `better` has the higher mIoU."""

    better: Labels
    worse: Labels
    source: str  # the paper's figures on A-150, or its words


@dataclass(frozen=True)
class Part:
    """Rows under common headings, such as (a) and (b) of Table IV."""

    headings: Labels
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper, in one or more parts."""

    title: str
    parts: tuple[Part, ...]
    note: str = ""


# The "default parameters" of the paper's ablations. λ_align, sizes and schedule come from the configuration.
DEFAULT = (
    "model.p2t_layers=1", "model.gamma_trainable=true", "model.t2p=true", "model.t2p_kernel_size=3", "model.lcs=true",
    "model.kernel_size=3", "model.kernel_norm=taps", "model.fusion=cat", "model.fast=false", "model.top_k=null",
    "model.encoder.finetune=attention",
)  # fmt: skip
ON = "✓"
FAST = ("model.fast=true", "model.top_k=8")


def _components(p2t: bool, t2p: bool, lcs: bool, paper: str = "") -> Row:
    keys = {"model.p2t_layers": int(p2t), "model.t2p": t2p, "model.lcs": lcs}
    labels = tuple(ON if on else "" for on in (p2t, t2p, lcs))
    return Row(labels, tuple(f"{key}={json.dumps(value)}" for key, value in keys.items()), paper)


def _sweep(heading: str, key: str, rows: dict[str, str], *claims: Claim, values: dict[str, str] | None = None) -> Part:
    """A part that varies one key.

    rows    label → the paper's mIoU
    values  label → the key's value, for labels that are not the value themselves
    """
    chosen = values or {}
    made = (Row((label,), (f"{key}={chosen.get(label, label)}",), paper) for label, paper in rows.items())
    return Part((heading,), tuple(made), claims)


def _above(better: str, worse: str, source: str) -> Claim:
    return Claim((better,), (worse,), source)


def _fixed(gamma: float) -> tuple[str, ...]:
    return (f"model.gamma={gamma}", "model.gamma_trainable=false")


TABLES = {
    "II": Table(
        "Table II: components",
        (
            Part(
                ("P2Tformer", "T2Ploss", "Local cost"),
                tuple(
                    _components(p2t, t2p, lcs, "31.4" if p2t and t2p and lcs else "")
                    for lcs, t2p, p2t in itertools.product((False, True), repeat=3)
                ),
                (
                    Claim((ON, ON, ON), ("", "", ""), "31.4 against 29.9 for its lowest row"),
                    Claim((ON, ON, ""), (ON, "", ""), "slight improvements"),
                    Claim((ON, ON, ON), (ON, ON, ""), "the best performance"),
                ),
            ),
        ),
        "The paper's four rows have 29.9, 30.3, 31.4 and 31.4 on A-150. Which components its first three rows switch "
        "on is missing from the text that was available: all eight combinations are here, the last with its figure.",
    ),
    "III": Table(
        "Table III: pixel alignment",
        (
            _sweep("P2Tformer", "model.p2t_layers", {"no": "", "yes": "31.4"},
                   _above("yes", "no", "higher scores across all datasets"), values={"no": "0", "yes": "1"}),
            _sweep("layers N", "model.p2t_layers", {"0": "", "1": "31.4", "2": "", "4": "", "6": ""},
                   _above("1", "0", "substantially better"), _above("6", "1", "1 and 6 both high, little gained")),
            Part(
                ("γ",),
                (Row(("trainable",), (), "31.4"), *(Row((f"fixed {g}",), _fixed(g)) for g in (0.1, 0.5, 1.0))),
                (_above("trainable", "fixed 0.5", "consistently better than fixed values"),),
            ),
            _sweep("λ_align", "model.loss.lambda_align", {"0.002": "", "0.02": "31.4", "0.2": "", "2.0": ""},
                   _above("0.02", "0.002", "smaller values do not constrain enough"),
                   _above("0.02", "2.0", "larger values dominate the loss")),
        ),
        "The body of the paper's table was not available: rows and claims come from its prose, and 31.4 is its default "
        "row. Here λ_align weights the mean over pixels × classes.",
    ),
    "IV": Table(
        "Table IV: local cost",
        (
            _sweep("kernel size", "model.kernel_size",
                   {"1": "31.4", "3": "31.4", "5": "31.3", "7": "31.8", "9": "31.9", "11": "32.0", "13": "31.8",
                    "15": "31.2"},
                   _above("9", "3", "31.9 against 31.4"), _above("9", "15", "31.9 against 31.2")),
            _sweep("kernel norm", "model.kernel_norm", {"none": "29.4", "taps": "31.4", "channels": ""},
                   _above("taps", "none", "31.4 against 29.4")),
        ),
        "T2Ploss keeps its 3×3 kernel. The paper's \"Yes\" is `taps` (softmax over a kernel's K² taps); `channels` is "
        "the other possible reading of its text. The outer taps of kernels wider than the patch grid see only padding.",
    ),
    "V": Table(
        "Table V: decoder",
        (
            Part(
                ("decoder",),
                (
                    Row(("Fast+Cat",), (*FAST, "model.fusion=cat"), "31.6"),
                    Row(("Fast+Add",), (*FAST, "model.fusion=add"), "31.6"),
                    Row(("NoFast+Cat",), ("model.fast=false", "model.top_k=null", "model.fusion=cat"), "31.4"),
                    Row(("NoFast+Add",), ("model.fast=false", "model.top_k=null", "model.fusion=add"), "30.9"),
                ),
                (
                    _above("NoFast+Cat", "NoFast+Add", "31.4 against 30.9"),
                    _above("NoFast+Cat", "Fast+Add", "called highest, though 31.4 against 31.6"),
                ),
            ),
        ),
        "Fast: one auxiliary head, top-k 8.",
    ),
    "VI": Table(
        "Table VI: top-k at inference, with the Fast+Cat model",
        (
            Part(
                ("top-k",),
                tuple(
                    Row((str(k),), (*FAST, "model.fusion=cat"), miou, k, milliseconds)
                    for k, miou, milliseconds in (
                        (1, "31.4", "146"), (4, "31.5", "185"), (8, "31.4", "210"), (16, "31.5", "240"),
                        (32, "31.5", "293"))
                ),
            ),
        ),
        "Time: milliseconds of CPU time per image on one thread, upsampling to the photo's size included (on a GPU: "
        "wall time). The paper gives no unit.",
    ),
    "VII": Table(
        "Table VII: fine-tuning of CLIP",
        (
            _sweep("strategy", "model.encoder.finetune", {"prompt-16": "", "attention": "31.4", "full": ""},
                   _above("attention", "prompt-16", "prompt-16 is lowest"),
                   _above("attention", "full", "full falls short of attention"), values={"prompt-16": "prompt"}),
        ),
        "The body of the paper's table was not available: the claims come from its prose, and 31.4 is its default row.",
    ),
    "LCS": Table(
        "Local cost with other kernels and borders",
        (
            Part(
                ("local cost", "border"),
                (
                    Row(("off", ""), ("model.lcs=false",)),
                    *(Row((norm, border), (f"model.kernel_norm={norm}", f"model.lcs_padding={border}"))
                      for norm in ("taps", "cosine") for border in ("zeros", "replicate")),
                ),
            ),
        ),
        "Not in the paper, whose local cost is `taps` with a border of zeros.",
    ),
}  # fmt: skip


def select_tables(names: Sequence[str] = ()) -> dict[str, Table]:
    """The named tables ("II", "iv", ...) in the paper's order; all of them if none is named.

    Raises UsageError for an unknown name.
    """
    wanted = [name.upper() for name in names]
    for name, key in zip(names, wanted, strict=True):
        if key not in TABLES:
            raise UsageError(f"table {name!r}: unknown; give any of {', '.join(TABLES)}")
    return {key: table for key, table in TABLES.items() if not wanted or key in wanted}


def rows_of(tables: Iterable[Table]) -> list[Row]:
    """Every row of the tables, in order."""
    return [row for table in tables for part in table.parts for row in part.rows]
