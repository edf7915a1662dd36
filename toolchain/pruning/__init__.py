"""Channel pruning: importance of channels (`criteria`), the choice under a budget (`selection`), and
the cut.
"""
