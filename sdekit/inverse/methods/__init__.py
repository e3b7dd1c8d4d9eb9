"""The methods, one file each: the formula, the paper, and a function registered by its name."""
