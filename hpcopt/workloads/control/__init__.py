"""Reinforcement learning: environments of gymnasium, acted in by an agent."""
