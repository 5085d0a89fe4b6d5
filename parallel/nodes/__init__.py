"""Several machines: starting a run on each, membership, what happens when one is lost, and a simulated cluster."""
