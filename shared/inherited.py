"""What a supervisor hands down to its worker besides three descriptors: variables of the environment.

Imported before anything slow (supervisor/__main__.py), so it imports nothing.
"""

LISTEN_FD_VARIABLE = "WEBHOOK_SUPERVISOR_LISTEN_FD"
"""Names the inherited listening socket."""

CONTROL_FD_VARIABLE = "WEBHOOK_SUPERVISOR_CONTROL_FD"
"""Names the worker's end of the control socketpair."""

LIFELINE_FD_VARIABLE = "WEBHOOK_SUPERVISOR_LIFELINE_FD"
"""Names the end of a pipe into which nobody writes: it says when the supervisor is gone."""

INSTANCE_VARIABLE = "WEBHOOK_SUPERVISOR_INSTANCE"
"""Tells the instance id that the supervisor made for this start."""

RECEIVE_VARIABLE = "WEBHOOK_SUPERVISOR_RECEIVE"
"""Set where nobody else takes updates in: the worker shall, before BOT_APP is built."""
