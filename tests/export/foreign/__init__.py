"""Stand-ins for the layers of repositories that are no packages, written from their papers and published formulas."""
