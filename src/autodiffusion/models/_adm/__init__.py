"""What models of guided-diffusion's checkpoints are made of: networks, classifier, flags, half precision."""
