"""One case, measured on every rank: build, prove parity, warm up, time steps, look inside. Each rank returns the row.

The order keeps measuring out of what is measured: timed steps carry nothing but the clock, the sampler and, where
somebody watches on a terminal, a bar that is drawn ten times a second; bytes, memory and waiting are looked at in
further steps, which are not timed.
"""
