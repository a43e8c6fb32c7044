"""How flat the region is that a run ended in: pure functions, and a finding for each command.

Every module measures one thing, with functions that take any loss over any tree of parameters,
and ends in `analyse(runs, ...) -> Finding`, which `okdph analysis NAME` prints and writes.

    landscape   loss on a plane of parameter space, and on the line between two networks
    hessian     top eigenvalues, trace, spectral density
    sharpness   worst and expected increase of the loss around a network
    pac_bayes   PAC-Bayes quantities of a network and its start
    barrier     distance and barrier between students over training
    noise       accuracy against input noise
    dot         the two losses of distillation, and how their gradients agree
    ablation    generations of self-distillation
"""
