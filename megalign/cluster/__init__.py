"""Finding the other processes: ranks from Slurm, torchrun, MPI or our own launcher."""
