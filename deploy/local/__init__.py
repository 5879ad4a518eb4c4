"""The whole system on one machine: Postgres, a Bot API server, a platform, and the bot.

The law of this package: it may import everything of ours, and no production code imports it, as the benchmarks
and the tests do. It runs what production runs - `python -m supervisor`, unchanged, as its own process - and
reaches it only as the world does: by its environment, its ports, its signals and its log lines; the
demo reads the inbox's table besides.
It binds 127.0.0.1 alone, writes only below the project's `.local/` folder, and ends everything that it
started, its own sudden death included.
"""
