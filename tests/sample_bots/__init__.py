"""Bots of every shape that BOT_APP takes, and what tests need to run them without a worker."""
