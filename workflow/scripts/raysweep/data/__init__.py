"""Fetches or generates a data set, verifies and splits the data set, and writes arrays and a manifest, which the trials read.

The controller stages data sets, except tables, which are staged in the environment of the trials. The trials and the engines run in the environment of
the trials and import only `split` and `manifest` of this subpackage (room). This room imports `common`. The room `config` and every higher room may import
this room.
"""
