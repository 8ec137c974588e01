"""Builds the environment in which trials run, packs and unpacks this environment for the nodes, and reads and writes the environment's record.

The controller and the agents on the nodes run this subpackage (room) in the controller's interpreter. This room imports `common` and `usercode`.
The room `config` may import only the light module `requirements` of this room; every higher room may import all modules of this room.
"""
