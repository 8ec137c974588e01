"""Fetches or generates a data set, verifies and splits it, and writes it as arrays with a manifest, from which the trials read it.

The controller stages data sets. The trials and the engines run in the environment of the trials and import only `split` and `manifest` of this
subpackage (room). This room imports `common`. The room `config` and every higher room may import this room.
"""
