"""Fetches or generates a data set, verifies and splits the data set, and writes arrays and a manifest, which the trials read.

The controller stages data sets. Tables are staged, and functions that return data are called, in the environment of the trials. The trials and the engines
run in the environment of the trials too, and import only `split` and `manifest` of this subpackage (room). This room imports `common` and `usercode`. The
room `config` and every higher room may import this room.
"""
