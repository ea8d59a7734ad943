"""Certifying data sets: readers, the run with its journal, the counts, and the report page.

``prepare`` verifies a model and opens a data set; ``certify`` answers every row; ``Results`` counts.
"""
