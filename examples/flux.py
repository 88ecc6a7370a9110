"""A plan in Flux: first whether it can be followed, which takes no weights, then an image.

    python examples/flux.py run/plan.json "a lighthouse at dawn" --out lighthouse.png

The plan may leave out layers of the transformer, and have any of the solvers.
"""

import argparse
from pathlib import Path

import torch
from diffusers import FluxPipeline

import autodiffusion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("plan", type=Path, help="its file")
parser.add_argument("prompt")
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="folder or hub name")
parser.add_argument("--size", type=int, default=1024, help="height and width of the image in pixels")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("flux.png"))
args = parser.parse_args()

plan = autodiffusion.Plan.load(args.plan)
print(autodiffusion.check(plan, args.model))  # or an InputError that says why not

dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
pipe = FluxPipeline.from_pretrained(args.model, torch_dtype=dtype).to(args.device)

applied = autodiffusion.apply(plan, pipe)
generator = torch.Generator().manual_seed(args.seed)
image = pipe(args.prompt, height=args.size, width=args.size, generator=generator).images[0]
image.save(args.out)

applied.remove()  # the pipeline is as it was
