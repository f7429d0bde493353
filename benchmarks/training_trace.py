"""Two rows of Table II on the drawn scenes, followed step by step: losses, gradient norms, weights and γ by part.

    python benchmarks/training_trace.py OUT --seed 2                     # with the local cost supplement
    python benchmarks/training_trace.py OUT --seed 2 --no-lcs            # without
    python benchmarks/training_trace.py OUT --seed 2 --perturb 1e-7      # every initial weight times 1 + 1e-7 N(0, 1)
    python benchmarks/training_trace.py OUT --seed 2 --weights-seed 0    # batches of seed 2, initial weights of seed 0
    python benchmarks/training_trace.py OUT --seed 2 --weights-of-no-lcs # all that both have, as without the supplement

The rows are those of `fgaseg ablate II --on scenes --steps 1000 --seed SEED`. OUT gets trace.csv, a line for every
`--every` steps, and the folder of the training. `--config` and `--encoder` stand in for configs/demo.yaml and its
encoder file; `KEY=VALUE` after them changes the configuration.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from fgaseg import FGASeg
from fgaseg.config import Config, load_config
from fgaseg.reproduce.ablations.tables import DEFAULT
from fgaseg.training import Callback
from fgaseg.training.trainer import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"
PARTS = (
    ("encoder", "clip."), ("p2t", "head.p2t."), ("t2p", "head.t2p."), ("lcs", "head.lcs."),
    ("embed_global", "head.embed_global."), ("embed_local", "head.embed_local."), ("fuse", "head.fuse."),
    ("aggregation", "head.layers."), ("decoder_fuse", "head.decoder.fuse"), ("local_up", "head.decoder.local_up."),
    ("decoder", "head.decoder."), ("guidance", "head."),
)  # fmt: skip


def part_of(name: str) -> str:
    return next((part for part, prefix in PARTS if name.startswith(prefix)), "rest")


class Trace(Callback):
    """Writes a row for every `every` steps; norms of gradients are those before clipping."""

    def __init__(self, trainer: Trainer, file: Path, every: int, perturb: float):
        self.trainer, self.file, self.every, self.perturb = trainer, file, every, perturb
        self.parts: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                self.parts.setdefault(part_of(name), []).append(parameter)
        self.rows: list[dict[str, Any]] = []
        self.norms: dict[str, float] = {}
        self.largest = 0.0  # gradient norm since the last row
        self.local: dict[str, float] = {}

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        if self.perturb:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameters in self.parts.values():
                    for p in parameters:
                        p.mul_(1 + self.perturb * torch.randn(p.shape, generator=generator))
        optimizer = self.trainer.optimizer
        reduce = optimizer.reduce_gradients

        def traced() -> torch.Tensor:
            self.norms = {part: norm([p.grad for p in ps if p.grad is not None]) for part, ps in self.parts.items()}
            total = reduce()
            self.largest = max(self.largest, float(total))
            return total

        optimizer.reduce_gradients = traced  # type: ignore[method-assign]
        head = self.trainer.model.head
        if head.lcs is not None:
            head.lcs.register_forward_hook(lambda _, inputs, output: self._see(output))

    def _see(self, local: torch.Tensor) -> None:
        if self.trainer.model.training:
            local = local.detach()
            self.local = {
                "S_l_between_classes": float(local.var(1).mean()),
                "S_l_between_pixels": float(local.flatten(2).var(2).mean()),
            }

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        gamma = self.trainer.model.head.p2t.gamma.detach().flatten()
        clip = self.trainer.config.train.clip_norm
        row = {"step": step, **{k: metrics[k] for k in ("loss", "seg", "align", "gradient_norm", "lr")}}
        row |= {"largest_gradient_norm": self.largest, "gamma": float(gamma.mean())}
        row |= {"gamma_min": float(gamma.min()), "gamma_max": float(gamma.max())}
        row["clipping"] = min(1.0, clip / metrics["gradient_norm"]) if clip else 1.0
        row |= {f"gradient {part}": value for part, value in self.norms.items()}
        row |= {f"weights {part}": norm([p.detach() for p in ps]) for part, ps in self.parts.items()} | self.local
        self.rows.append(row)
        self.largest = 0.0
        with self.file.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in one.items()} for one in self.rows
            )


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([x.float().norm() for x in tensors]).norm()) if tensors else 0.0


def row_config(args: argparse.Namespace) -> Config:
    base = load_config(
        args.config, f"model.encoder.pretrained={json.dumps(str(args.encoder))}", *DEFAULT, "train.tensorboard=false",
        f"train.steps={args.steps}", f"train.log_every={args.every}", f"train.eval_every={args.eval_every}",
        f"train.seed={args.seed}", f"train.out={json.dumps(str(args.out))}", "train.save_every=0", *args.overrides,
    )  # fmt: skip
    return base.override("model.lcs=false") if args.no_lcs else base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--no-lcs", action="store_true")
    parser.add_argument("--weights-seed", type=int)
    parser.add_argument("--weights-of-no-lcs", action="store_true")
    parser.add_argument("--perturb", type=float, default=0.0)
    parser.add_argument("--config", type=Path, default=CONFIGS / "demo.yaml")
    parser.add_argument("--encoder", type=Path, default=CONFIGS / "demo_encoder.safetensors")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    config = row_config(args)
    trainer = Trainer(config, resume=False)
    if args.weights_seed is not None:
        torch.manual_seed(args.weights_seed)
        trainer.model.load_state_dict(FGASeg(config.model).state_dict())
    if args.weights_of_no_lcs:
        torch.manual_seed(args.seed)
        trainer.model.load_state_dict(FGASeg(config.model.override("lcs=false")).state_dict(), strict=False)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.callbacks.append(Trace(trainer, args.out / "trace.csv", args.every, args.perturb))
    summary = trainer.train()
    for name, scores in summary.scores.items():
        print(f"{args.out.name} {name} {100 * scores.miou_gt:.2f}", flush=True)


if __name__ == "__main__":
    main()
