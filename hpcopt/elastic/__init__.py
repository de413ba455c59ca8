"""Going on when ranks are lost: who is in (``company``), what they keep of each other (``copies``), who brings ranks
back (``keeper``), and the same again (``membership``). ``hpcopt.going_on`` puts them together.
"""
