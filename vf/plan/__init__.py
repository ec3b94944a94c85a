"""What a run will ask of a machine that is not there yet: chips, compiled programs and the time they take."""
