"""Trials trained together: models of one form as one stacked computation, each with its own weights, settings and optimiser state.

The modules run in the node environment; `raysweep.tune.slots` imports them, and nothing else of the package.

`torch.func.vmap` turns many small operations into one large operation for any model; no kernel in these modules knows the model. The stack takes the data in
micro-batches of one size. The gradients of a member add up until the member's own batch is complete, and only then do its weights change. So one stack has
members of all batch sizes, and each member gets the weights that it would get alone. verification.py checks that before a sweep relies on it. Members at the
same epoch see the same data in the same order (seeds.epoch_order), so that their first layer can take the data in as one.

Sources: functional optimisers as in torch.optim of PyTorch (BSD licence), written again for members with settings of their own; model ensembling with
torch.func, https://pytorch.org/tutorials/intermediate/ensembling.html.
"""
