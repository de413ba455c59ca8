"""How far a trained classifier can be trusted: conservative bounds on its probability of failure per demand.

X is the unknown probability that the network fails on the next demand; demands are drawn independently from one
operational profile. What life-cycle evidence says of X is a partial prior: Pr(X <= eps) >= theta, X >= p_l. Operation
adds k failures in n demands. Whatever is told is the worst case over all priors that agree with the partial one
(Zhao, Banks, Sharp, Robu, Flynn, Fisher, Huang: A safety framework for critical systems utilising deep neural
networks, SAFECOMP 2020, arXiv:2003.05311; conservative Bayesian inference after Bishop, Bloomfield, Littlewood,
Povyakalo, Wright, IEEE TSE 37(5), 2011).
"""
