"""Trains several trials whose models have one form together, as one stacked computation. Each trial keeps separate weights, settings and optimiser state.

The modules run in the node environment. Outside this subpackage only `raysweep.tune.slots` imports these modules.

A stack consists of the models of several trials, which are called its members. `torch.func.vmap` combines many small operations into one large operation for
any model, so these modules contain no code for a particular model. The stack processes the data in micro-batches of one size. The gradients of a member are
added until the batch of this member is complete, and only then the weights of this member change. So one stack can contain members of all batch sizes, and
each member gets the weights that this member would get in training alone. verification.py checks these weights before a sweep uses a stack. Members at one
epoch receive the same data in the same order (seeds.epoch_order), so that the first layer of all these members can process the data together.

Sources: The optimisers follow torch.optim of PyTorch (BSD licence) and were written again for members with different settings. The stacking of models
follows https://pytorch.org/tutorials/intermediate/ensembling.html.
"""
