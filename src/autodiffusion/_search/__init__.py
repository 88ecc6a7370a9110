"""The search: from settings to a confirmed plan, for one solver and number of steps or for several."""
