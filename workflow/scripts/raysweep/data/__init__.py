"""Data sets as trials see them: fetched or generated, verified, split, and left as arrays on the disk with a manifest that describes them.

The controller stages data sets; the trials and the engines, in the environment of the trials, import only `split` and `manifest` of this
room. It imports `common`, and `config` and every higher room may import it.
"""
