"""Learned gradient compression, LGC (Abrahamyan et al. 2021, arXiv:2103.08870): ranks' gradients at one step share most
of what they say, and an autoencoder learns the common part while the model trains.
"""
