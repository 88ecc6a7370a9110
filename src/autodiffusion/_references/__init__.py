"""References: what generated images are compared with, read from files that somebody else made."""
