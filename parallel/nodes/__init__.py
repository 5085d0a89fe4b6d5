"""Several machines: starting a run on each, who is there, what happens when one is lost, and a simulated cluster."""
