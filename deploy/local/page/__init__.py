"""The web page of `make run`: watch who owns what, talk to the bot, and break things.

    browser ── GET /, twice a second GET /api/state ──► server ──► view   what the system looks like now
            └─ POST /api/...                        ──►        ──► desk   what its buttons do

The law of this package: it adds nothing to what the platform and the emulator's control client can do, and knows of an
instance only what its ports and log lines say. It listens on 127.0.0.1 alone, and since it can kill processes, it obeys
nobody but its own page (server.py).
"""
