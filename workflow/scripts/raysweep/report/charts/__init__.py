"""Builds the figures of the report as Vega-Lite specifications.

A specification is a plain dict, because the page and the files on disk both need JSON.
"""
