"""KAISA: distributed K-FAC that adapts to the memory it is given (Pauloski et al. 2021, arXiv:2107.01739)."""
