"""What supervisor and worker have in common: configuration, identity, logs, the control protocol, the schema.

Law: this package imports nothing of ours. It never decides anything about ownership (that is `supervisor.core`) and never
touches an update's meaning (that is `webhook_worker`).
"""
