"""Training loops with one silent bug each, and their clean twins: plain PyTorch, as its users write it."""
