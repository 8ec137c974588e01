"""The environment that trials run in: its requirements, how it is built, packed for the nodes and unpacked, and the record that describes it.

The controller and the agents on the nodes run this room in the controller's interpreter; it imports `common` and `usercode`, and every room
from `config` upwards may import it, `config` only the light module `requirements`.
"""
