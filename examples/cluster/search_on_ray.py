"""A search on the Ray cluster that this machine belongs to; run again, it goes on.

17 workers are asked for, as many as ray_cluster.yaml has GPUs when all its machines run: those that wait for a GPU make
Ray start one. Without ``--workers`` there are as many as the cluster has GPUs by itself.
"""

import os
import shlex
import subprocess

COMMAND = """
autodiffusion search google/ddpm-cifar10-32 --steps 6 --solver gls --reference cifar10/
    --device cuda --ray-address auto --workers 17 --batch-size 16 --timeout 600 --out runs/cifar10
"""

if __name__ == "__main__":
    raise SystemExit(subprocess.run(shlex.split(COMMAND), cwd=os.path.expanduser("~"), check=False).returncode)
