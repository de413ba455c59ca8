"""Earlier methods that train a network by splitting it into layers: what Block-ADMM is compared with. On one rank."""
