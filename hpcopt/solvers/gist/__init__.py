"""Sub-networks of disjoint hidden units, trained apart (GIST: Wolfe et al. 2021, arXiv:2102.10424)."""
