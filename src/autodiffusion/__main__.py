"""``python -m autodiffusion``."""

from autodiffusion.cli import main

main()
