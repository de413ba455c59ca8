"""Text -> sentence pairs for BERT: ``python -m hpcopt.prepare bert --text PATHS``, on one rank or many."""
