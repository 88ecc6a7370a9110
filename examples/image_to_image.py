"""A plan that begins with an image: the last steps of it, as many as `--strength` leaves.

    python examples/image_to_image.py run/plan.json photo.png "a watercolour of a harbour" --strength 0.5

The pipeline is called with the plan's number of steps, so that strength is a share of these.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

import autodiffusion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("plan", type=Path, help="its file")
parser.add_argument("image", type=Path)
parser.add_argument("prompt")
parser.add_argument("--strength", type=float, default=0.5, help="the share of the plan's steps that is made")
parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="folder or hub name")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("image_to_image.png"))
args = parser.parse_args()

plan = autodiffusion.Plan.load(args.plan)
dtype = torch.float32 if args.device == "cpu" else torch.float16
pipe = StableDiffusionImg2ImgPipeline.from_pretrained(args.model, torch_dtype=dtype).to(args.device)

with autodiffusion.apply(plan, pipe):
    image = pipe(
        args.prompt,
        image=Image.open(args.image).convert("RGB"),
        strength=args.strength,
        num_inference_steps=len(plan.steps),  # any other number is refused
        generator=torch.Generator().manual_seed(args.seed),
    ).images[0]
image.save(args.out)
