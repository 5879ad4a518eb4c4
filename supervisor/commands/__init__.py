"""The commands of an operator: `python -m supervisor check`, `webhook`, `status`, `handover`, `inbox`.

    entry.py      the command line: arguments, configuration, exit codes
    standing.py   who owns, who is there, what waits: read from the database
    check.py      every phase of the diagnosis; trial_build.py: the bot of BOT_APP, built once
    webhook.py    the registration by hand
    status.py     `standing` for people and programs
    times.py      how times are written for people
    inbox.py      dead letters and backlog
    handover.py   asks the owner to give up, and waits

Each runs beside the instances, in their environment, for some seconds: it is none of them, holds no lock and begins no term.
What it prints is for people, or one JSON document for programs (`--json`); never a secret, and no update's body unless it is
asked for. It imports nothing of the running supervisor but what reads and writes the same rows and answers.
"""
