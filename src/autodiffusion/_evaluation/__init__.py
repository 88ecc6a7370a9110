"""Evaluation: plans to figures, on the search's noise and on fresh noise, and the time that plans take."""
