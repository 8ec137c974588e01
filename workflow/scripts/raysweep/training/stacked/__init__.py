"""Trains several trials together, as one stacked computation, where their models have one form. Each trial has separate weights and settings.

The modules run in the node environment. Only `raysweep.tune.slots` imports these modules; no other module of the package does.

A stack consists of the models of several trials, which are called its members. `torch.func.vmap` combines many small operations into one large operation
for any model, so these modules contain no code for a particular model. The stack processes the data in micro-batches of one size. The gradients of a
member are added until the batch of this member is complete, and only then the weights of this member change. So one stack can contain members of all batch
sizes, and each member gets the weights that it would get if it trained alone. verification.py checks the weights before a sweep uses a stack. Members at
the same epoch receive the same data in the same order (seeds.epoch_order), so that the first layer of all these members can process the data together.

Sources: The optimisers follow torch.optim of PyTorch (BSD licence) and were written again for members with different settings. The stacking of models
follows https://pytorch.org/tutorials/intermediate/ensembling.html.
"""
