"""`trainer gradcheck`: the gradients of every layer, by hand, by autograd and by central differences, compared."""
