"""Plans: what to evaluate when, on which noise schedule, and plans that have a name. Nothing here runs a network."""
