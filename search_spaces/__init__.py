"""What can be built: architectures, budgets and spaces as pure values, without torch, Ray or a network."""
