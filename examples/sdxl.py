"""A plan in Stable Diffusion XL.

    python examples/sdxl.py run/plan.json "an astronaut riding a horse" --out astronaut.png

`autodiffusion search` has made the plan, or it is a published one: `autodiffusion plans ays/sdxl/10 --out ays.json`
writes it.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

import autodiffusion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("plan", type=Path, help="its file")
parser.add_argument("prompt")
parser.add_argument("--model", default="stabilityai/stable-diffusion-xl-base-1.0", help="folder or hub name")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("sdxl.png"))
args = parser.parse_args()

dtype = torch.float32 if args.device == "cpu" else torch.float16
pipe = StableDiffusionXLPipeline.from_pretrained(args.model, torch_dtype=dtype, use_safetensors=True).to(args.device)

with autodiffusion.apply(autodiffusion.Plan.load(args.plan), pipe):  # until the end of this block
    image = pipe(args.prompt, generator=torch.Generator().manual_seed(args.seed)).images[0]
image.save(args.out)
