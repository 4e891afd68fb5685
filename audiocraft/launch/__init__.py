"""How XPs are started: several processes here, a queue of this machine, SLURM. Dora calls it from its commands."""
