"""Views: what looks on while a search runs, on a terminal, in a notebook, in TensorBoard, as a report."""
