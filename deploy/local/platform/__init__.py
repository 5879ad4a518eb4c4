"""A platform in small: a router before instances of the bot, and Render's way of replacing them.

The law of this package: all decisions - when traffic is switched, who gets which signal when - are in
`sequence`, which is pure; `simulator` carries them out and reports what happened. An instance sees nothing
that a real platform's would not: its environment, probes and requests on its port, and signals.
"""
