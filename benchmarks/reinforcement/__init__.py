"""What the solver `actor_critic` and its networks do, beside stable-baselines3, over ranks, and against the claims of
papers. docs/results/reinforcement.md has what came out.
"""
