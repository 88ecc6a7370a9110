"""Trains the bundled class-conditional diffusion model of 16x16 digits.

    python training/train_unet.py --data mnist.npz --out OUT [--epochs 30] [--init EARLIER_OUT]

Writes a diffusers pipeline folder (``model_index.json``, ``unet/``, ``scheduler/``) with float16 weights, and a log
line an epoch. Labels are dropped with probability 0.1 in favour of class 10, the null class, so that the network also
serves classifier-free guidance. The weights kept are an exponential moving average.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from data import digits
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch.nn import functional

from autodiffusion._evaluation.confirm import confirm, figure
from autodiffusion._search.inputs import find_reference, plan_of, prepare
from autodiffusion.models._load import load
from autodiffusion.models.mnist import FOLDER, NULL_CLASS

REFERENCE = FOLDER / "reference.npz"


def network() -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=24,
        num_class_embeds=NULL_CLASS + 1,
    )


def save(unet: UNet2DModel, scheduler: DDIMScheduler, out: Path) -> None:
    DDIMPipeline(copy.deepcopy(unet).half(), scheduler).save_pretrained(out, safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--stop-after", type=int, help="stop after so many of the epochs")
    parser.add_argument("--init", type=Path, help="folder of an earlier run, whose averaged weights are the start")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.9985)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fid-samples", type=int, default=5000)
    parser.add_argument("--only-fid", action="store_true", help="train nothing; print the FID of the network in --out")
    args = parser.parse_args()
    if not args.only_fid:
        train(args)
    print_fid(args.out, args.fid_samples)


def train(args: argparse.Namespace) -> None:
    """Trains, saving after each epoch."""

    torch.manual_seed(args.seed)
    images, labels = digits(args.data, "train")
    unet = UNet2DModel.from_pretrained(args.init, subfolder="unet", low_cpu_mem_usage=False) if args.init else network()
    unet = unet.float().to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(unet).eval()
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", clip_sample=True
    )
    batches = len(images) // args.batch_size
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=batches * args.epochs, pct_start=0.05
    )
    print(f"{sum(p.numel() for p in unet.parameters()):,} parameters, {args.epochs} epochs of {batches} batches")
    start, step = time.time(), 0
    for epoch in range(args.stop_after or args.epochs):
        order, total = torch.randperm(len(images)), 0.0
        for batch in order[: batches * args.batch_size].view(batches, -1):
            x0, label = images[batch], labels[batch].clone()
            label[torch.rand(len(label)) < 0.1] = NULL_CLASS
            noise = torch.randn_like(x0)
            t = torch.randint(0, 1000, (len(x0),))
            x = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
            loss = functional.mse_loss(unet(x, t, class_labels=label).sample, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            rate.step()
            step += 1
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / batches:.5f}, {time.time() - start:.0f} s", flush=True)
        save(average, scheduler, args.out)


def print_fid(folder: Path, samples: int) -> None:
    """The FID of 100-step samples on the bundled feature network, and of a few and many steps for comparison."""
    evaluator, source = prepare(load(str(folder), null_class=NULL_CLASS), "mnist", str(REFERENCE))
    reference = find_reference(source, evaluator)
    plans = {f"uniform:{steps}": plan_of(f"uniform:{steps}", evaluator.model) for steps in (4, 10, 100)}
    for row in confirm(evaluator, reference, plans, ["fid"], samples, 0):
        print(f"FID of {samples} samples by {row.name}: {figure(row.to_json()['scores']['fid'])}", flush=True)


if __name__ == "__main__":
    main()
