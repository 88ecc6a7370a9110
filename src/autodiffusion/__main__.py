"""``python -m autodiffusion``."""

from autodiffusion._cli import main

main()
