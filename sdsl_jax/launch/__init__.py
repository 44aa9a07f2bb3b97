"""The same work in many processes: jobs of a Slurm cluster, or of this machine."""
