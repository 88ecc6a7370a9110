#!/usr/bin/env bash
# A search on the GPUs of one machine, 8 here: one worker for each, which is also what is done if --workers is left out.
# Run again after anything that happened, it goes on.
set -euo pipefail

autodiffusion search google/ddpm-cifar10-32 \
    --steps 6 --solver gls --reference cifar10/ \
    --device cuda --workers 8 --batch-size 16 --timeout 600 \
    --out runs/cifar10
