"""What a step does: closure, gradients, clipping, optimizers and schedulers."""
