"""A transformer in NumPy, float64, every gradient written out by hand: what autograd is compared with, and a text to read.

Nothing here imports torch. Each forward has its backward beside it; a backward takes the gradient of the loss by the output
first, then what the forward took, and gives the gradient by each of those. Suffixes of names are shapes: B sequences, T tokens,
D width, H heads, K coordinates of a head, V vocabulary, R rows.
"""
