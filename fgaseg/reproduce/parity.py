"""`fgaseg parity`: every recorded tensor of the released code beside ours, stage by stage.

The recordings, the weights' and the image's filling (`fill.py`) and the class names lie outside the package: see `run`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError
from ..inference import sliding_scores
from ..kernels import Selection, kernel_softmax
from ..model import FGASeg
from ..model import head as model_module
from ..training import segmentation_losses
from ..weights import RELEASED_KEYS

WORST, MEDIAN = 1e-4, 1e-5  # largest error of any element of any stage; median over the stages of their largest
# of gradients: rounding alone moves the released code's own by up to 2.5e-4 (its float32 beside our float64; ours in
# float32 by 2.3e-4), because sums over all pixels of all classes cancel and ReLU has a kink
GRADIENT = 1e-3
NOTHING = 1e-12  # a gradient below this share of the whole norm is rounding, such as that of the keys' bias
MARGIN = 1e-4  # at a head, choices between classes nearer than this are ties (the recordings' README)
PHOTO = 384


@dataclass(frozen=True)
class Stage:
    """One recorded tensor. error: the largest difference as a share of the recording's largest value, or None."""

    name: str
    error: float | None
    note: str = ""

    @property
    def limit(self) -> float:
        return GRADIENT if self.name.startswith("grad") else WORST


@dataclass(frozen=True)
class Case:
    """One recorded file."""

    name: str
    stages: list[Stage]
    seconds: float

    @property
    def errors(self) -> list[float]:
        return [stage.error for stage in self.stages if stage.error is not None]

    @property
    def worst(self) -> float:
        """Without the gradients."""
        return max((s.error for s in self.stages if s.error is not None and s.limit == WORST), default=float("nan"))

    @property
    def worst_gradient(self) -> float | None:
        """None: the case has no gradients."""
        return max((s.error for s in self.stages if s.error is not None and s.limit == GRADIENT), default=None)

    @property
    def median(self) -> float:
        return statistics.median(self.errors) if self.errors else float("nan")

    @property
    def passed(self) -> bool:
        """Within the limits; NaN and a case of which nothing was compared are not."""
        return self.median <= MEDIAN and all(s.error <= s.limit for s in self.stages if s.error is not None)

    def dump(self) -> dict[str, Any]:
        figures = {"worst": self.worst, "worst_gradient": self.worst_gradient, "median": self.median}
        return {**asdict(self), **figures, "passed": self.passed}


class Recording:
    """One .npz: NAME flattened and taken at NAME__stride, NAME__shape, NAME__stats (mean, std, min, max, norm)."""

    def __init__(self, path: Path):
        self.path = path
        self.arrays = np.load(path)
        self.names = [name for name in self.arrays.files if "__" not in name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def shape(self, name: str) -> list[int]:
        return [int(n) for n in self.arrays[f"{name}__shape"]]

    def sampled(self, name: str) -> bool:
        return f"{name}__stride" in self.arrays

    def error(self, name: str, got: Tensor, skip: int = 0) -> float:
        """Of a tensor that has the recorded shape, from its flattened element `skip` on."""
        if list(got.shape) != self.shape(name):
            raise ValueError(f"{name}: ours is {list(got.shape)}, recorded is {self.shape(name)}")
        stride = int(self.arrays[f"{name}__stride"])
        ours = got.detach().cpu().flatten()[::stride].double()
        theirs = torch.from_numpy(self.arrays[name]).double()
        _, _, low, high, _ = self.arrays[f"{name}__stats"]
        largest = max(abs(low), abs(high), np.finfo(np.float32).tiny)
        if low == model_module.DROPPED:  # no value that was computed
            largest = theirs[theirs != low].abs().max()
        return float((ours - theirs).abs()[-(-skip // stride) :].max() / largest)


class Tape:
    """What modules were given and gave during a pass, by forward hooks; the pieces of a pass are joined.

    levels  class indices [B, R] of the rows that are computed, in the recorded order: all or capped, then after each
            pruning. Our rows are in ascending order; `rows` gives them in the recorded one.
    """

    # the last levels at which rows exist that have not been pruned yet
    LEVELS = ((r"corr_local|embed_.*|fuse|text_guidance|mask_aux0", 0), (r"enter\d+|layer.*|fuse1|mask_aux1", 1),
              (r"local_up|stage1|fuse2|mask_aux2", 2), (r"stage2|head", 3))  # fmt: skip

    def __init__(self, levels: list[Tensor]):
        self.levels = levels
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        self.handles: list[Any] = []

    def watch(self, module: Any, name: str, take: Callable[[Any, Any], Tensor]) -> None:
        """Keep take(inputs, output) of every call of `module` under `name`."""
        if module is not None:
            hook = module.register_forward_hook(
                lambda _, inputs, output: self.parts[name].append(take(inputs, output).detach().clone())
            )
            self.handles.append(hook)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.parts:
            raise KeyError(name)
        return torch.cat(self.parts[name])

    @property
    def batch(self) -> int:
        return len(self["pixels"])

    def rows(self, name: str) -> Tensor:
        """[R, ...]. What is made again for every stage that takes it in is there several times: the first is whole."""
        level = next(level for pattern, level in self.LEVELS if re.fullmatch(pattern, name))
        classes = self.levels[min(level, len(self.levels) - 1)]
        positions = classes.argsort(dim=1).argsort(dim=1) + torch.arange(len(classes))[:, None] * classes.shape[1]
        return self[name][positions.flatten()]

    def maps(self, name: str) -> Tensor:
        """Rows [R, H, W, D] → [R, D, H, W]."""
        return self.rows(name).permute(0, 3, 1, 2)

    def volume(self, name: str) -> Tensor:
        """Rows [R, H, W, D] → [B, D, T, H, W]."""
        return self.rows(name).unflatten(0, (self.batch, -1)).permute(0, 4, 1, 2, 3)


@contextlib.contextmanager
def taped(tape: Tape, model: FGASeg) -> Iterator[None]:
    """Hooks on every module whose input or output is a recorded stage."""
    _watch(tape, model)
    try:
        yield
    finally:
        tape.close()


def _watch(tape: Tape, model: FGASeg) -> None:
    head, decoder = model.head, model.head.decoder

    def output(_: Any, out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    def given(inputs: Any, _: Any) -> Tensor:
        return inputs[0]

    tape.watch(model, "clip_in", given)
    for i in model.image_encoder.guidance_blocks:  # a block is no module call of ours, its successor's norm is
        tape.watch(model.clip.visual.transformer.resblocks[i + 1].ln_1, f"block{i}", given)
    tape.watch(head, "pixels", lambda inputs, _: inputs[0].embedding)
    tape.watch(head, "corr_global", lambda _, out: out.gcs)
    tape.watch(head, "logits", lambda _, out: out.logits)
    tape.watch(head.p2t, "p2t_out", output)
    for i, layer in enumerate(head.p2t.layers):
        tape.watch(layer.attention, f"p2t_attn{i}", output)
    if head.t2p is not None:
        tape.watch(head.t2p, "align_map", output)
        tape.watch(head.t2p.last, "proj_vis", output)
    tape.watch(head.lcs, "corr_local", lambda _, out: out.flatten(0, 1))
    for name in ("embed_global", "embed_local", "fuse", "image_guidance", "text_guidance", "early_up", "late_up",
                 "early_guidance", "late_guidance"):  # fmt: skip
        tape.watch(getattr(head, name), name, output)
    for i, layer in enumerate(head.layers):
        tape.watch(layer.block1, f"enter{i}", given)
        tape.watch(layer.block1, f"layer{i}_swin_block1", output)
        tape.watch(layer.block2, f"layer{i}_swin", output)
    tape.watch(decoder.fuse1, f"enter{len(head.layers)}", given)
    for name in ("fuse1", "fuse2", "local_up", "stage1", "stage2", "head"):
        tape.watch(getattr(decoder, name), name, output)
    for i, auxiliary in enumerate(head.aux_heads):
        tape.watch(auxiliary, f"mask_aux{i}", output)


# recorded stages, from a tape, in the released code's layout
STAGES: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("clip_in|logits|proj_vis|align_map", lambda tape, name: tape[name]),
    ("train_align", lambda tape, _: tape["align_map"]),
    (r"layer(\d+)_out", lambda tape, _, i: tape[f"block{i}"].transpose(0, 1) if f"block{i}" in tape else
     tape.volume(f"enter{int(i) + 1}")),
    ("res4", lambda tape, _: tape["early_up"]),
    ("res5", lambda tape, _: tape["late_up"]),
    (r"p2t_(?:attn\d+|out)", lambda tape, name: tape[name].transpose(0, 1)),
    ("corr_global", lambda tape, name: tape[name][:, None]),
    ("corr_local(?:#2)?", lambda tape, _: tape.rows("corr_local").unflatten(0, (tape.batch, -1))),
    ("corr_embed", lambda tape, _: tape.maps("embed_global")),
    ("corr_local_embed", lambda tape, _: tape.maps("embed_local")),
    ("proj_guidance", lambda tape, _: tape["image_guidance"].relu()),
    ("proj_text_guidance", lambda tape, _: tape.rows("text_guidance").relu().unflatten(0, (tape.batch, -1))),
    ("proj_decoder_guidance0", lambda tape, _: tape["early_guidance"].relu()),
    ("proj_decoder_guidance1", lambda tape, _: tape["late_guidance"].relu()),
    ("fused_embed", lambda tape, _: tape.volume("fuse")),
    (r"layer\d+_swin_block1", lambda tape, name: tape.rows(name).flatten(1, 2)),
    (r"layer\d+_swin", lambda tape, name: tape.volume(name)),
    (r"conv_cat_decoder_(\d)", lambda tape, _, i: tape.rows(f"fuse{i}")),
    (r"decoder(\d)", lambda tape, _, i: tape.maps(f"stage{i}")),
    ("corr_local_decoder_projection", lambda tape, _: tape.maps("local_up")),
    (r"mask_aux\d|head", lambda tape, name: tape.rows(name)[:, None]),
)  # fmt: skip


def compare(recorded: Recording, tape: Tape, computed: dict[str, Tensor]) -> Iterator[Stage]:
    """One Stage for every recorded tensor, from `computed` or from the tape."""
    for name in recorded.names:
        if not recorded.sampled(name) or name == "image":
            continue
        try:
            yield _compare_one(name, recorded, tape, computed)
        except KeyError as error:
            yield Stage(name, None, f"not formed: our model has {error.args[0]!r} inside a larger step")


def _compare_one(name: str, recorded: Recording, tape: Tape, computed: dict[str, Tensor]) -> Stage:
    if name in computed:
        return Stage(name, recorded.error(name, computed[name]))
    if name == "clip_features":
        tokens = F.pad(tape["pixels"].flatten(2).transpose(1, 2), (0, 0, 1, 0))
        return Stage(name, recorded.error(name, tokens, tokens.shape[2]), "class token not formed")
    for pattern, make in STAGES:
        if found := re.fullmatch(pattern, name):
            return Stage(name, recorded.error(name, make(tape, name, *found.groups())))
    return Stage(name, float("nan"), "a stage that this report does not know")


@contextlib.contextmanager
def recorded_choices(levels: list[Tensor], stages: list[Stage]) -> Iterator[None]:
    """Class cap and pruning choose what was recorded, so that a tie does not spoil what follows; what ours would have
    chosen is compared instead. A class may differ where it is within rounding of the cut."""
    pruning = iter(range(1, len(levels)))

    def selection(classes: Tensor, total: int) -> Selection:
        batch, kept = classes.shape
        rows = classes.sort(dim=1).values + torch.arange(batch)[:, None] * total
        return Selection(rows.flatten(), torch.full((batch,), kept), batch, total)

    def judge(name: str, ours: Selection, theirs: Selection, near: Tensor, what: str) -> None:
        """near [B·T]: rows that rounding may move over the cut."""
        differ = set(ours.rows.tolist()) ^ set(theirs.rows.tolist())
        wrong = [row for row in differ if not near[row]]
        note = f"{len(theirs.rows)} {what}" + (f", {len(differ)} of them tied" if differ else "")
        stages.append(Stage(name, len(wrong) / len(theirs.rows), note))

    def capped(scores: Tensor, count: int) -> Selection:
        theirs = selection(levels[0], scores.shape[1])
        best = scores.flatten(2).amax(-1)
        cut = best.sort(dim=1, descending=True).values[:, count - 1 : count]
        near = (best - cut).abs() <= MEDIAN * best.abs().max()
        judge("padlen_classes", cap(scores, count), theirs, near.flatten(), "classes kept by the cap")
        return theirs

    def pruned(scores: Tensor, k: int, union: str) -> Selection:
        step = next(pruning)
        theirs = selection(levels[step], scores.shape[1])
        flat = scores.flatten(2)
        cut = flat.topk(min(k, flat.shape[1]), dim=1).values[:, -1:]
        near = (flat - cut).abs() <= MARGIN
        name = "valid_idx" + (f"#{step}" if step > 1 else "")
        judge(name, topk(scores, k, union), theirs, near.any(-1).flatten(), "classes survive")
        return theirs

    cap, topk = model_module.strongest_classes, model_module.topk_classes
    model_module.strongest_classes, model_module.topk_classes = capped, pruned  # type: ignore[assignment]
    try:
        yield
    finally:
        model_module.strongest_classes, model_module.topk_classes = cap, topk


def recorded_levels(recorded: Recording, batch: int, classes: int) -> list[Tensor]:
    """Class indices [B, R] of the recorded rows: at first, and after each pruning."""
    rows = torch.arange(classes).expand(batch, -1)
    if "padlen_classes" in recorded:
        rows = torch.from_numpy(recorded["padlen_classes"]).reshape(batch, -1)
    levels = [rows]
    kept = {int(n[10]) if n[9] == "#" else 1: n for n in recorded.names if n.startswith("valid_idx")}  # #2: second call
    for call in sorted(kept):
        levels.append(levels[-1][:, torch.from_numpy(recorded[kept[call]]).flatten()])
    return levels


def different_labels(recorded: Recording, name: str, scores: Tensor) -> Stage:
    """Share of the pixels whose best class is another one although the best two are apart. scores [..., T, h, w]."""
    labels = torch.from_numpy(recorded[name].astype(np.int64))
    best = scores.topk(2, dim=-3)
    clear = (best.values.select(-3, 0) - best.values.select(-3, 1)) > MEDIAN * scores[
        scores != model_module.DROPPED
    ].abs().max()
    chosen = best.indices.select(-3, 0)
    wrong = (chosen != labels.reshape(chosen.shape)) & clear
    return Stage(name, float(wrong.double().mean()), f"{int((~clear).sum())} tied pixels left out")


class Root:
    """The folder of the recordings, and the class names beside it."""

    def __init__(self, root: Path, dtype: torch.dtype):
        self.root, self.dtype = root, dtype
        if not (root / "fill.py").is_file():
            raise CheckpointError(f"{root}: no recordings of the released code here (fill.py, *.npz); give --root")
        specification = importlib.util.spec_from_file_location("fgaseg_recordings_fill", root / "fill.py")
        assert specification is not None and specification.loader is not None
        self.fill: ModuleType = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.fill)
        self.weights = lru_cache(maxsize=1)(self._weights)  # the last ones: 0.6 GB, or 1.7 GB for ViT-L

    def cases(self) -> list[Path]:
        return sorted(self.root.glob("*.npz"), key=lambda path: (Described.of(path).weights, path.name))

    def names(self, described: Described) -> list[str]:
        return json.loads((self.root.parent / "data" / "classes" / f"{described.vocabulary}.json").read_text())

    def _weights(self, keys: str, rule: str) -> dict[str, Tensor]:
        filled = self.fill.state_dict(self.root / f"state_dict_keys_{keys}.txt", rule)
        return {key: torch.from_numpy(value) for key, value in filled.items()}

    def model(self, described: Described) -> FGASeg:
        switches = {} if described.top_k is None else {"top_k": described.top_k}
        return FGASeg.from_released(self.weights(*described.weights), **switches).to(self.dtype)

    def pixels(self, model: FGASeg, height: int = PHOTO, width: int = PHOTO) -> Tensor:
        """The recorded input as the whole-image path has it: normalised, squashed to the training resolution."""
        photo = torch.from_numpy(self.fill.image(height, width)).to(self.dtype)
        photo = (photo / 255 - model.mean[:, None, None]) / model.std[:, None, None]
        side = model.config.image_size
        if (height, width) == (side, side):
            return photo[None]
        return F.interpolate(photo[None], size=(side, side), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Described:
    """What a recording's file name says."""

    kind: str
    weights: tuple[str, str]  # state_dict_keys_<first>.txt, filled by rule <second>
    vocabulary: str
    top_k: int | None

    @classmethod
    def of(cls, path: Path) -> Described:
        """ "infer_L_fast-cat-voc20-ruleB-top1.npz" and the like."""
        if path.stem.startswith("common_image_side"):
            return cls("common", ("no_fast_cat", path.stem[-1]), "voc20", None)
        kind, _, rest = path.stem.partition("_")
        if kind not in ("infer", "sliding", "train") or rest.count("-") < 1:
            raise CheckpointError(f"{path}: a recording whose name tells no case that is known")
        mode, fusion, *others = rest.split("-")
        rule, top_k, vocabulary = "A", None, "coco"
        for word in others:
            if found := re.fullmatch(r"(?:rule)?([AB])", word):
                rule = found[1]
            elif found := re.fullmatch(r"top(\d+)", word):
                top_k = int(found[1])
            else:
                vocabulary = word
        return cls(kind, (f"{mode}_{fusion}", rule), vocabulary, top_k)


def run_case(root: Root, path: Path) -> Case:
    """Compare one recording with our model."""
    described, recorded, start = Described.of(path), Recording(path), time.perf_counter()
    run_kind = {"common": _image_side, "infer": _infer, "sliding": _sliding, "train": _train}[described.kind]
    return Case(path.stem, run_kind(root, described, recorded), time.perf_counter() - start)


@torch.no_grad()
def _image_side(root: Root, described: Described, recorded: Recording) -> list[Stage]:
    model = root.model(described)
    vocabulary = model.encode(["thing"])
    tape = Tape([torch.zeros(1, 1, dtype=torch.int64)])
    with taped(tape, model):
        model(root.pixels(model), vocabulary)
    return list(compare(recorded, tape, {}))


@torch.no_grad()
def _infer(root: Root, described: Described, recorded: Recording) -> list[Stage]:
    model, names = root.model(described), root.names(described)
    vocabulary, stages = model.encode(names), list[Stage]()
    levels = recorded_levels(recorded, 1, len(names))
    tape = Tape(levels)
    with taped(tape, model), recorded_choices(levels, stages):
        out = model(root.pixels(model), vocabulary)
        head, aligned = model.head, tape["p2t_out"]
        if head.t2p is not None:
            head.t2p(tape["pixels"], aligned)  # in inference nobody asks for it
    computed = {"text_emb": vocabulary.embeddings[:, None]}
    if head.lcs is not None:
        texts = F.normalize(aligned, dim=-1)
        logits = head.lcs.text(texts)[..., :-1]
        kernels = kernel_softmax(logits, model.config.kernel_size, model.config.kernel_norm)[0]
        computed |= {"lcs_kernel": kernels, "lcs_kernel#2": kernels[levels[0][0]]}
        if "corr_local#2" in recorded:  # the released code also computes it for all classes before the cap
            computed["corr_local"] = head.lcs(F.normalize(tape["pixels"], dim=1), texts)
    # the released code squashes what the model returns once more, sigmoid inside or not
    size = recorded.shape("sem_seg")[1:]
    computed["sem_seg"] = F.interpolate(out.logits.sigmoid(), size=size, mode="bilinear", align_corners=False)[0]
    stages += compare(recorded, tape, computed)
    if "argmax_logits" in recorded:
        stages.append(different_labels(recorded, "argmax_logits", out.logits))
    return stages


@torch.no_grad()
def _sliding(root: Root, described: Described, recorded: Recording) -> list[Stage]:
    model, names = root.model(described), root.names(described)
    height, width = recorded.shape("sem_seg")[1:]
    photo = torch.from_numpy(root.fill.image(height, width, 3)).to(root.dtype)
    tape = Tape([torch.arange(len(names)).expand(5, -1)])
    with taped(tape, model):
        scores = sliding_scores(model, photo, model.encode(names))
    scores = F.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    stages = list(compare(recorded, tape, {"sem_seg": scores}))
    return [*stages, different_labels(recorded, "argmax_sem_seg", scores)]


def _train(root: Root, described: Described, recorded: Recording) -> list[Stage]:
    model, names = root.model(described), root.names(described)
    tape = Tape([torch.arange(len(names))[None]])
    model.train()
    labels = torch.from_numpy(root.fill.label(classes=len(names)))[None]
    with taped(tape, model):
        vocabulary = model.encode(names)
        out = model(root.pixels(model), vocabulary)
    losses = segmentation_losses(out, labels, model.config.loss)
    losses["loss"].backward()
    losses = {name: loss.detach() for name, loss in losses.items()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    buffers = dict(model.named_buffers())
    computed = {"text_emb": vocabulary.embeddings[:, None]}
    for name in recorded.names:
        side, _, key = name.partition(":")
        if side in ("grad", "bn_after"):
            computed[name] = (gradients if side == "grad" else buffers)[RELEASED_KEYS.to_ours(key) or key]
            computed[name] = computed[name].reshape(recorded.shape(name))
    stages = list(compare(recorded, tape, computed))
    ours = {"seg": losses["seg"], "align": losses["align"], "total": losses["loss"]}
    for name, value in zip(recorded["loss_names"].tolist(), recorded["loss_values"].tolist(), strict=True):
        stages.append(Stage(f"loss {name}", abs(float(ours[name]) - value) / abs(value)))
    return [*stages, *_gradient_norms(recorded.path.with_suffix(".json"), gradients)]


def _gradient_norms(path: Path, gradients: dict[str, Tensor]) -> list[Stage]:
    """Norm, sum and first element of every gradient; the worst gradient of each is named."""
    recorded = json.loads(path.read_text())
    total = torch.stack([g.double().norm() for g in gradients.values()]).norm()
    stages = [Stage("gradient norm", abs(float(total) / recorded["total_grad_norm"] - 1))]
    entries = {
        RELEASED_KEYS.to_ours(key) or key: (key, *values) for key, values in recorded["grads_norm_sum_first"].items()
    }
    if alone := sorted(entries.keys() ^ gradients.keys()):
        stages.append(Stage("gradients", float("nan"), "only ours or only recorded: " + ", ".join(alone)))
    kinds: dict[str, dict[str, float]] = {"norms": {}, "sums": {}, "first elements": {}}
    for name in entries.keys() & gradients.keys():
        key, norm, summed, first = entries[name]
        g = gradients[name].double()
        if max(norm, float(g.norm())) < NOTHING * recorded["total_grad_norm"]:
            continue
        scale = (g.norm(), g.abs().sum(), g.abs().max())  # a sum cancels: what it can be wrong by is what it adds up
        ours = (g.norm(), g.sum(), g.flatten()[0])
        for kind, x, y, largest in zip(kinds, ours, (norm, summed, first), scale, strict=True):
            kinds[kind][key] = abs(float(x) - y) / max(float(largest), abs(y))
    for kind, errors in kinds.items():
        worst = max(errors, key=lambda key: errors[key])
        note = f"{len(errors)} of {len(entries)}, the others are rounding; worst: {worst}"
        stages.append(Stage(f"gradient {kind}", errors[worst], note))
    return stages


def run_parity(root: Path, dtype: str, only: list[str], as_json: bool) -> bool:
    """Compare every recording under `root` (or those whose name holds one of `only`), print, and tell if all pass.

    root  the folder of fill.py, *.npz and state_dict_keys_*.txt; the class names are in ../data/classes beside it
    Raises CheckpointError where there is nothing to compare.
    """
    from rich.console import Console

    recordings = Root(root, getattr(torch, dtype))
    paths = [path for path in recordings.cases() if not only or any(word in path.stem for word in only)]
    if not paths:
        raise CheckpointError(f"{root}: no recording's name holds {' or '.join(only)}")
    cases = []
    for path in paths:
        cases.append(run_case(recordings, path))
        if not as_json:
            Console().print(_table(cases[-1]))
            print(verdict(cases[-1]), flush=True)
    passed = all(case.passed for case in cases)
    if as_json:
        limits = {"worst": WORST, "worst_gradient": GRADIENT, "median": MEDIAN}
        print(json.dumps({"passed": passed, "limits": limits, "dtype": dtype, "cases": [c.dump() for c in cases]}))
    else:
        print(f"{sum(case.passed for case in cases)} of {len(cases)} cases pass")
    return passed


def verdict(case: Case) -> str:
    """One line: the errors that decide, and the decision."""
    word = "passes" if case.passed else f"FAILS (limits {WORST:.0e}, of gradients {GRADIENT:.0e}, median {MEDIAN:.0e})"
    gradients = "" if case.worst_gradient is None else f" (of gradients {case.worst_gradient:.1e})"
    return (f"{case.name}: worst element {case.worst:.1e}{gradients}, median stage {case.median:.1e}: {word}, "
            f"{case.seconds:.0f} s")  # fmt: skip


def _table(case: Case) -> Any:
    from rich.table import Table

    table = Table("stage", "error / largest value", "", title=case.name, title_justify="left")
    for stage in case.stages:
        error = "-" if stage.error is None else f"{stage.error:.1e}"
        table.add_row(
            stage.name, error, stage.note, style="red" if stage.error and not stage.error <= stage.limit else None
        )
    return table
