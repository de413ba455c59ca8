"""Off-policy actor-critic methods: collectors act, learners update, and a replay stands between them."""
