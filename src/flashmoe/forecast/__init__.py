"""How a model would run on this machine, told before it does."""
