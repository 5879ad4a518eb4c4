"""Models of Postgres in memory, by the plainest means, for tests in simulated time.

Law: they decide nothing that the product decides in Python, and what they decide is what its SQL decides; contracts that run on
a model and on Postgres hold the two together: tests/unit/worker/inbox_contract.py, tests/unit/supervisor/ownership_contract.py.
"""
