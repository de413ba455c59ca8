"""An optimizer's state shared out over the ranks (ZeRO stage 1: Rajbhandari et al. 2020, arXiv:1910.02054)."""
