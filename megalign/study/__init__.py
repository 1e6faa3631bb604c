"""Studies: methods and seeds as a graph of steps, run and reported."""
