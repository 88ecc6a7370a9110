"""A plan's sigmas for ComfyUI: paste the line into a ManualSigmas node, or read it from the file.

    python examples/comfyui_sigmas.py run/plan.json --schedule scaled_linear --out sigmas.txt

They hold the plan's times alone. What they leave out, its solver or the layers that it leaves out, is printed.
"""

import argparse
from pathlib import Path

from autodiffusion import NoiseSchedule, Plan
from autodiffusion.export import left_out, sigmas, text

SCHEDULES = {
    "scaled_linear": NoiseSchedule.scaled_linear(),  # Stable Diffusion 1, 2 and XL
    "flow": NoiseSchedule.flow(),  # Stable Diffusion 3 and Flux; the plan's times have the shift in them
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("plan", type=Path, help="its file")
parser.add_argument("--schedule", choices=SCHEDULES, default="scaled_linear", help="of the model it was found for")
parser.add_argument("--out", type=Path, default=Path("sigmas.txt"))
args = parser.parse_args()

plan = Plan.load(args.plan)
line = text(sigmas(plan, SCHEDULES[args.schedule]))
args.out.write_text(line + "\n")
print(line)
if lost := left_out(plan):
    print(f"not in these sigmas: {lost}")
