"""What each operation does with a gradient, in words: the name of a graph's node -> its local derivative."""

SAME_VALUES = "The same values in another shape: so is the gradient. Nothing is computed."
REORDERED = "The same values in another order: the gradient is put back into the old order. Nothing is computed."

RULES = {
    "AccumulateGrad": "The end of a path: the gradient is added to .grad of this tensor.",
    # Products
    "Addmm": "A linear layer. To its input goes the gradient times the weight, transposed; to its weight the input, "
    "transposed, times the gradient; to its bias the sum of the gradient over the rows.",
    "Mm": "A product of two matrices. To each factor goes the gradient times the other factor, transposed.",
    "Bmm": "A product of two matrices, for each of a batch. To each factor goes the gradient times the other, transposed.",
    "Convolution": "To the input goes the gradient through the transposed convolution; to the kernel the sum, over all "
    "places, of the gradient times the input there; to the bias the sum of the gradient over all places.",
    # Elementwise
    "Add": "A sum: the gradient is passed on unchanged, to each summand; summed over dimensions that were repeated.",
    "Sub": "A difference: the gradient is passed on unchanged to the first term, with the opposite sign to the second.",
    "Mul": "A product of single values: to each factor goes the gradient times the other factor.",
    "Div": "A quotient: to the dividend goes the gradient divided by the divisor.",
    "Neg": "The gradient with the opposite sign.",
    "Abs": "The gradient times the sign of the input: where the input was negative it changes its sign.",
    "Pow": "A power: the gradient times the exponent times the input to the power of one less. Of a square: 2 times the input.",
    "Exp": "The gradient times the output: the exponential is its own derivative.",
    "Clamp": "The gradient passes where the input lay within the bounds, and is zero elsewhere.",
    "Relu": "The gradient passes where the input was positive, and is zero elsewhere.",
    "Gelu": "The gradient times the slope of the curve at the input: near 1 for large inputs, near 0 for very negative ones.",
    "Silu": "The gradient times the slope of the curve at the input: near 1 for large inputs, near 0 for very negative ones.",
    "Tanh": "The gradient times 1 minus the output squared: little passes where the output is near -1 or 1.",
    "MaskedFill": "The gradient passes where no value was filled in, and is zero where one was.",
    # Sums and normalizations
    "Sum": "A sum of many values: each of them gets the gradient of the sum.",
    "Mean": "A mean of many values: each of them gets the gradient of the mean divided by their number.",
    "Softmax": "Output times (gradient minus the mean of the gradient, weighted by the output): the probabilities add up to 1, "
    "so one can grow only where others shrink.",
    "LogSoftmax": "The gradient minus the probabilities times the sum of the gradient.",
    "Logsumexp": "Each value gets the gradient times its softmax: its share of the sum of exponentials.",
    "NativeLayerNorm": "The gradient (times the gain, where there is one), without its mean and without its part along the "
    "normalized input, divided by the standard deviation: neither shift nor scale of the input matters.",
    "NativeGroupNorm": "As for NativeLayerNorm, in each group of channels.",
    "NativeBatchNorm": "In eval mode the gradient times the gain, divided by the running standard deviation of its channel.",
    "MaxPool2DWithIndices": "The largest of several values: it gets the whole gradient, the others zero.",
    # Losses
    "MseLoss": "Twice the difference of prediction and target, times the gradient.",
    "SmoothL1Loss": "The difference of prediction and target, kept within -1 and 1, times the gradient.",
    "NllLoss": "Minus the gradient, at the right class alone.",
    "NllLoss2D": "Minus the gradient, at the right class alone.",
    # Places and shapes
    "Embedding": "Rows that were looked up in a table: each row that was used gets the gradient of its uses, all others zero.",
    "Index": "Values that were picked out: the gradient goes back to their places, all others get zero.",
    "Select": "A slice that was picked out: the gradient goes back to its place, the rest gets zero.",
    "Slice": "A part that was cut out: the gradient goes back to its place, the rest gets zero.",
    "IndexPut": "Values that were written into a tensor: they get the gradient of their places; there the old values get zero.",
    "Cat": "Tensors side by side: each gets its part of the gradient.",
    "Split": "The parts of a tensor: their gradients are put side by side; a part that was not used counts as zero.",
    "SplitWithSizes": "The parts of a tensor: their gradients are put side by side; a part that was not used counts as zero.",
    "Unbind": "The slices of a tensor: their gradients are put side by side.",
    "Expand": "One value that was repeated: the gradients of all its copies are added.",
    "View": SAME_VALUES,
    "UnsafeView": SAME_VALUES,
    "ReshapeAlias": SAME_VALUES,
    "Unsqueeze": SAME_VALUES,
    "Clone": "A copy: the gradient is passed on unchanged.",
    "ToCopy": "The same values in another precision: the gradient is converted back, and rounded where that has fewer digits.",
    "ConstantPadNd": "A margin was added: it is cut off the gradient.",
    "Roll": REORDERED,
    "T": REORDERED,
    "Transpose": REORDERED,
    "Permute": REORDERED,
}


def rule(operation: str) -> str:
    """The local derivative of an operation, as `graph.operation` names it."""
    general = f"The gradient times the Jacobian of {operation}, by a formula of autograd's own that never builds that matrix."
    return RULES.get(operation, general)
